"""Frames dealt to ranks: every token once, in order of time, evenly; settings that cannot be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m4v.core.errors import ConfigError
from m4v.flow.packing import history_shape
from m4v.model.layout import BatchLayout, Clip, Column
from m4v.parallel.check import check_sequence
from m4v.parallel.cut import cut_frames, rows_of
from m4v.parallel.group import SequenceGroup, deal
from m4v.parallel.shard import shard_of


def column(stage: int, unit: int, side: int = 8) -> Column:
    clips = [Clip(n, side >> (2 - s), side >> (2 - s)) for s, n in history_shape(stage, unit)]
    return Column(stage, (*clips, Clip(1, side >> (2 - stage), side >> (2 - stage))))


columns = st.lists(st.builds(column, st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=4)


@given(columns=columns, slots=st.integers(0, 7), ranks=st.integers(2, 5))
def test_every_frame_has_one_rank_in_order_of_time(columns, slots, ranks):
    layout = BatchLayout(tuple(columns), slots)
    cut = cut_frames(layout, ranks)
    for number, of_column in enumerate(columns):
        ends = [0] + [frames[number][1] for frames in cut]
        assert [frames[number][0] for frames in cut] == ends[:-1]
        assert ends == sorted(ends)
        assert ends[-1] == of_column.frames
    rows = np.concatenate([rows_of(layout, frames) for frames in cut])
    assert sorted(rows) == list(range(layout.image_tokens))
    shards = [shard_of(layout, SequenceGroup(rank, ranks), "cpu") for rank in range(ranks)]
    assert [s.local.image_tokens for s in shards] == [len(rows_of(layout, frames)) for frames in cut]
    assert [s.local.text_tokens for s in shards] == [layout.text_tokens] + [0] * (ranks - 1)
    assert sum(sum(s.noisy_lengths) for s in shards) == sum(c.clips[-1].height * c.clips[-1].width for c in columns)


def test_a_long_clip_is_cut_evenly():
    """Wan at 720p, 241 frames: 61 latent frames of 3,600 tokens; text opens the first part and closes the last."""
    layout = BatchLayout((Column(0, (Clip(61, 45, 80),)),), 512)
    for ranks, most in ((2, 31), (4, 16), (8, 8)):
        frames = [last - first for ((first, last),) in cut_frames(layout, ranks)]
        assert sum(frames) == 61
        assert max(frames) == most
        assert min(frames[1:-1], default=most) == most


def test_heads_that_do_not_divide_are_dealt_too():
    assert deal(30, 4) == [8, 8, 7, 7]
    assert deal(30, 5) == [6] * 5


def test_more_ranks_than_heads_or_frames_are_refused():
    check_sequence(12, heads=12, frames=61)
    with pytest.raises(ConfigError, match="12 heads") as heads:
        check_sequence(16, heads=12, frames=61)
    assert "at most 12" in str(heads.value.next_step)
    with pytest.raises(ConfigError, match="clips of 4 latent frames"):
        check_sequence(8, heads=12, frames=4)
