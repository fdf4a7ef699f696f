"""The section `curate.captions` in recipes: where it enters the graph, the key and the request of the stage."""

from typing import Any

import pytest

from m4v.core.errors import ConfigError
from pipelines.environment import local_target
from pipelines.graph import build_graph
from pipelines.keys import key_record
from pipelines.recipe import load_recipe
from pipelines.spec import StageNode

NO_FOOTAGE = "sources.street.location=/videos"
RECAPTION = "curate.captions={recaption: {model: vlm-7b}}"
TEXT = "weights=[{name: text, entry: pyramidflow-text, location: /weights}]"
T5 = "{kind: t5_clip, weights: text, slots: 24, embedding_dim: 384, pooled_dim: 384}"


def curate_node(*overrides: str) -> StageNode:
    nodes = build_graph(load_recipe("micro", [NO_FOOTAGE, *overrides]))
    return next(node for node in nodes if node.id == "curate")


def record(*overrides: str) -> Any:
    return key_record(curate_node(*overrides), {}, local_target("cpu"))


def test_recipes_without_the_section_are_as_they_were() -> None:
    plain = record()
    assert "captions" not in plain.config
    assert record("curate.captions=null").stage_key == plain.stage_key
    assert not any("tokenizer" in name for name in plain.weights)
    assert [name for name in curate_node().inputs if name.startswith("weights")] == []


def test_captions_are_counted_by_the_encoder_of_the_recipe() -> None:
    node = curate_node("curate.captions={}")
    captions = node.config.captions  # type: ignore[attr-defined]
    assert (captions.text_encoder.kind, captions.limit) == ("minilm", 24)
    assert "minilm/tokenizer" in record("curate.captions={}").weights
    words = curate_node("curate.captions={count: words, max_tokens: 60}").config.captions  # type: ignore[attr-defined]
    assert (words.counting, words.limit) == (None, 60)
    assert curate_node("curate.captions={max_tokens: 99}").config.captions.limit == 24  # type: ignore[attr-defined]


def test_imported_encoders_are_inputs_of_the_stage() -> None:
    imported = (TEXT, f"encode.text_encoder={T5}")
    assert curate_node(*imported, "curate.captions={}").inputs["weights.text"] == ("weights.text", "weights")
    assert "weights.text" not in curate_node(*imported).inputs
    assert "weights.text" not in curate_node(*imported, "curate.captions={count: words}").inputs
    with pytest.raises(ConfigError, match=r"curate\.captions\.text_encoder\.weights.*no weights called 'text'"):
        load_recipe("micro", [NO_FOOTAGE, f"curate.captions={{text_encoder: {T5}}}"])


def test_where_requests_go_is_no_part_of_the_key_and_reaches_the_stage() -> None:
    where = "endpoint: 'http://vlm.example:9/v1', concurrency: 64, max_requests: 9"
    there = f"curate.captions={{recaption: {{model: vlm-7b, {where}}}}}"
    assert record(there).stage_key == record(RECAPTION).stage_key
    assert "vlm.example" not in record(there).model_dump_json()
    assert record("curate.captions={recaption: {model: other}}").stage_key != record(RECAPTION).stage_key
    sent = curate_node(there).config.canonical()["captions"]
    assert isinstance(sent, dict)
    assert sent["recaption"]["endpoint"] == "http://vlm.example:9/v1"


def test_what_a_ledger_keeps_reads_back_as_a_config() -> None:
    from dataprep.curate_config import CurateConfig

    kept = CurateConfig.model_validate(record(RECAPTION).config)
    assert kept.key_config() == record(RECAPTION).config
