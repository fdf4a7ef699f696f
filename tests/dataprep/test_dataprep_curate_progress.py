"""Curation says how far it is from its first file on, with the time that is left."""

from pathlib import Path
from typing import Any

import nasty
from curation_runs import CHEAP, context, curated, inputs, list_source

from m4v.core.stage import Progress, ProgressReporter
from m4v.video_io import encode_mp4


def test_progress_counts_files_probed_and_then_frames_with_the_time_left(tmp_path: Path, monkeypatch: Any) -> None:
    for number in range(3):
        nasty.with_caption(tmp_path / "in" / f"{number}.mp4", encode_mp4(nasty.frames(24, 64, 96, number), 24))
    listed = list_source(tmp_path / "listed", "wild", tmp_path / "in", {"kind": "folder"})
    monkeypatch.setattr("dataprep.curation.videos._BATCH_FRAMES", 24)  # a video a batch
    config = {**CHEAP, "shots": {"detector": "none"}, "filters": {**CHEAP["filters"], "min_motion": None}}
    made = context(tmp_path / "run", "curate", config, inputs(listed), {"wild": str(tmp_path / "in")})
    said: list[Progress] = []
    update = ProgressReporter.update

    def heard(reporter: ProgressReporter, *given: Any) -> None:
        update(reporter, *given)
        if reporter is made.progress:
            said.append(reporter._state)

    monkeypatch.setattr(ProgressReporter, "update", heard)
    monkeypatch.setattr(ProgressReporter, "SETTLED_S", 1e-6)  # all is done within the first second
    curated(made)
    probed = [(p.done, p.total) for p in said if p.unit == "files probed"]
    assert probed == [(1, 3), (2, 3), (3, 3)]
    frames = [p for p in said if p.unit == "frames"]
    assert frames[-1].done == frames[-1].total == 72
    assert any(p.eta_s for p in frames)
    assert frames[-1].eta_s in (None, 0)
