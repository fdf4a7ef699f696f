"""Stage keys: what is in them, what is not, and how differences are put in words."""

import ast
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m4v.core.artifacts import ArtifactKind
from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError
from m4v.core.stage import Resources
from pipelines.environment import Target
from pipelines.keys import (
    CODE_ROOT,
    KeyRecord,
    changes,
    code,
    flatten,
    key_record,
    probe_value,
    reachable_files,
    summarise,
)
from pipelines.keys.code import OUR_PACKAGES
from pipelines.spec import InputSpec, StageNode, StageSpec

TARGET = Target(device="cpu", architecture="x86_64-avx2")


class Inner(FrozenModel):
    rate: float = 0.5
    names: tuple[str, ...] = ("a", "b")


class Config(FrozenModel):
    steps: int = 4
    inner: Inner = Inner()
    dtype: str = "float32"


def weights_of(config: Config) -> dict[str, str]:
    return {"model": f"{config.steps:064d}"}


def probe(config: Config, locations: dict[str, str]) -> str:
    return str(sorted(p.name for p in Path(locations["films"]).iterdir()))


SPEC = StageSpec(
    name="encode",
    version=1,
    function="pipelines.keys.record:key_record",
    config_model="m4v.core.config:FrozenModel",
    inputs={"clips": InputSpec(ArtifactKind.CLIPS)},
    outputs={"dataset": ArtifactKind.DATASET},
    numeric=True,
)


def node(**changed: object) -> StageNode:
    values: dict[str, object] = {"id": "encode", "spec": SPEC, "config": Config(), "seed": 3}
    return StageNode(**{**values, **changed})  # type: ignore[arg-type]


def record(changed_node: StageNode | None = None, target: Target = TARGET, **inputs: str) -> KeyRecord:
    return key_record(changed_node or node(), inputs or {"clips": "a" * 64}, target)


def replace(spec: StageSpec, **changed: object) -> StageSpec:
    import dataclasses

    return dataclasses.replace(spec, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "component"),
    [
        (lambda: record(node(config=Config(steps=5))), "config"),
        (lambda: record(node(config=Config(inner=Inner(names=("a",))))), "config"),
        (lambda: record(clips="b" * 64), "input"),
        (lambda: record(node(seed=4)), "seed"),
        (lambda: record(node(spec=replace(SPEC, version=2))), "stage"),
        (lambda: record(node(spec=replace(SPEC, function="pipelines.spec:StageSpec"))), "code"),
        (lambda: record(node(spec=replace(SPEC, data_files=("pyproject.toml",)))), "code"),
        (lambda: record(node(resources=Resources(ranks=2, threads=1, workers=1))), "numerics"),
        (lambda: record(node(resources=Resources(ranks=1, threads=2, workers=1))), "numerics"),
        (lambda: record(target=Target(device="cuda", architecture="sm_90")), "numerics"),
        (lambda: record(node(spec=replace(SPEC, weights=f"{__name__}:weights_of"))), "weights"),
    ],
)
def test_every_component_moves_the_key(other, component):
    before, after = record(), other()
    assert before.stage_key != after.stage_key
    assert {c.component for c in changes(before, after)} == {component}


def test_lock_file_is_in_the_key_by_its_bytes(tmp_path):
    here, there = tmp_path / "a" / "lock.txt", tmp_path / "b" / "other.txt"
    for path in (here, there):
        path.parent.mkdir()
        path.write_text("numpy==2.0\n")
    keys = [record(target=Target(architecture="x", lock_file=str(p))).stage_key for p in (here, there)]
    assert keys[0] == keys[1], "the place of the lock file must not count"
    there.write_text("numpy==2.1\n")
    assert record(target=Target(architecture="x", lock_file=str(there))).stage_key != keys[0]
    with pytest.raises(ConfigError, match="lock file does not exist"):
        record(target=Target(architecture="x", lock_file=str(tmp_path / "none.txt")))


def test_workers_engine_place_and_node_name_are_not_in_the_key():
    base = record().stage_key
    many = Resources(ranks=1, threads=1, workers=7, engine="ray", ray_address="ray://head:10001")
    assert record(node(resources=many)).stage_key == base
    assert record(node(locations={"films": "/elsewhere"})).stage_key == base
    assert record(node(id="another")).stage_key == base


def test_host_home_and_time_are_not_in_the_key(monkeypatch, tmp_path):
    base = record().stage_key
    for name in ("HOSTNAME", "HOME", "M4V_HOME", "TMPDIR", "USER"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("socket.gethostname", lambda: "another-host")
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.chdir(tmp_path)
    assert record().stage_key == base


def test_threads_and_device_do_not_count_for_a_stage_that_is_not_numeric():
    plain = replace(SPEC, numeric=False)
    one = record(node(spec=plain))
    two = record(node(spec=plain, resources=Resources(ranks=1, threads=9, workers=1)))
    assert one.numerics is None
    assert one.stage_key == two.stage_key


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(0, 9), seed=st.integers(0, 2**53), clips=st.text("0123456789abcdef", min_size=64, max_size=64))
def test_key_survives_json(steps, seed, clips):
    made = record(node(config=Config(steps=steps), seed=seed), clips=clips)
    again = KeyRecord.model_validate_json(made.model_dump_json())
    assert again.stage_key == made.stage_key
    assert changes(again, made) == []


def test_the_same_tree_elsewhere_has_the_same_code_digest(tmp_path):
    copy = tmp_path / "deep" / "clone"
    copy.mkdir(parents=True)
    for package in OUR_PACKAGES:
        shutil.copytree(CODE_ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    reference = ("pipelines.stage_process:main",)
    here, there = reachable_files(reference), reachable_files(reference, root=copy)
    assert here == there
    (copy / "m4v/core/canonical.py").write_text((copy / "m4v/core/canonical.py").read_text() + "\n# a comment\n")
    changed = reachable_files(reference, root=copy)
    assert {p for p in changed if changed[p] != here[p]} == {"m4v/core/canonical.py"}


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_every_form_of_import_is_followed(tmp_path):
    write_tree(
        tmp_path,
        {
            "dataprep/__init__.py": "import m4v.on_the_way\n",
            "dataprep/a/__init__.py": "",
            "dataprep/a/b.py": (
                "import os, numpy\nimport dataprep.plain\nfrom dataprep import module\n"
                "from dataprep.names import value\nfrom . import sibling\nfrom ..up import x\n"
                "def f():\n    from dataprep.lazy import y\n"
                "def g():\n    import importlib\n    importlib.import_module('dataprep.dynamic')\n"
            ),
            "dataprep/a/sibling.py": "from dataprep.deep.inside import *\n",
            "dataprep/deep/__init__.py": "",
            "dataprep/deep/inside.py": "import m4v.core2\n",
            **{f"dataprep/{n}.py": "" for n in ("plain", "module", "names", "up", "lazy", "dynamic", "unused")},
            "m4v/__init__.py": "",
            "m4v/on_the_way.py": "",
            "m4v/core2.py": "",
            "numpy/__init__.py": "",
        },
    )
    names = set(reachable_files(["dataprep.a.b:f"], root=tmp_path))
    assert names == {
        "dataprep/__init__.py", "dataprep/a/__init__.py", "dataprep/a/b.py", "dataprep/a/sibling.py",
        "dataprep/deep/__init__.py", "dataprep/deep/inside.py", "dataprep/dynamic.py", "dataprep/lazy.py",
        "dataprep/module.py", "dataprep/names.py", "dataprep/plain.py", "dataprep/up.py",
        "m4v/__init__.py", "m4v/core2.py", "m4v/on_the_way.py",
    }  # fmt: skip


def test_circular_imports_end_and_edits_are_seen(tmp_path):
    write_tree(tmp_path, {"eval/__init__.py": "", "eval/a.py": "import eval.b\n", "eval/b.py": "import eval.a\n"})
    first = reachable_files(["eval.a:run"], root=tmp_path)
    assert set(first) == {"eval/__init__.py", "eval/a.py", "eval/b.py"}
    write_tree(tmp_path, {"eval/b.py": "import eval.c\n", "eval/c.py": "x = 1\n"})
    second = reachable_files(["eval.a:run"], root=tmp_path)
    assert set(second) == {*first, "eval/c.py"}


def test_data_files_count_and_hidden_ones_do_not(tmp_path):
    write_tree(
        tmp_path,
        {
            "eval/__init__.py": "", "eval/a.py": "", "eval/data/words.tsv": "red\n", "eval/data/.swp": "x",
            "eval/data/__pycache__/a.tsv": "x",
        },
    )  # fmt: skip
    found = reachable_files(["eval.a:run"], ("eval/data/**/*",), root=tmp_path)
    assert set(found) == {"eval/__init__.py", "eval/a.py", "eval/data/words.tsv"}


def test_a_missing_module_and_broken_syntax_are_named(tmp_path):
    with pytest.raises(ConfigError, match="module has no source file"):
        reachable_files(["training.no_such_stage:run"])
    write_tree(tmp_path, {"eval/__init__.py": "", "eval/a.py": "def (:\n"})
    with pytest.raises(ConfigError, match="line 1"):
        reachable_files(["eval.a:run"], root=tmp_path)


def test_probe_sees_a_changed_folder(tmp_path):
    (tmp_path / "one.mp4").write_bytes(b"")
    watched = node(spec=replace(SPEC, probe=f"{__name__}:probe"), locations={"films": str(tmp_path)})
    before = key_record(watched, {}, TARGET, probe_value(watched))
    assert key_record(watched, {}, TARGET, probe_value(watched)).stage_key == before.stage_key
    (tmp_path / "two.mp4").write_bytes(b"")
    after = key_record(watched, {}, TARGET, probe_value(watched))
    assert summarise(changes(before, after)) == f"files outside the store: {before.probe[:12]} -> {after.probe[:12]}"


def test_changes_in_words():
    before = record()
    after = record(node(config=Config(steps=9, inner=Inner(rate=0.25, names=("a", "c", "d"))), seed=5), clips="c" * 64)
    words = summarise(changes(before, after))
    assert "config steps: 4 -> 9" in words
    assert "config inner.rate: 0.5 -> 0.25" in words
    assert "config inner.names.1: b -> c" in words
    assert "config inner.names.2: (absent) -> d" in words
    assert f"input clips: {before.inputs['clips'][:12]} -> cccccccccccc" in words
    assert "seed 3 -> 5" in words


def test_digests_are_told_from_what_to_what():
    before = record().model_copy(update={"code": {"a.py": "a" * 64, "b.py": "b" * 64}, "lock_digest": "1" * 64})
    before = before.model_copy(update={"weights": {"minilm": "2" * 64, "gone": "3" * 64}, "probe": None})
    after = before.model_copy(update={"code": {"a.py": "c" * 64, "new.py": "d" * 64}, "lock_digest": None})
    after = after.model_copy(update={"weights": {"minilm": "4" * 64}, "probe": "5" * 64})
    words = summarise(changes(before, after))
    assert "code changed: a.py (aaaaaaaaaaaa -> cccccccccccc), b.py removed (bbbbbbbbbbbb), new.py added (dddd" in words
    assert "lock file: 111111111111 -> (none)" in words
    assert "weights minilm: 222222222222 -> 444444444444" in words
    assert "weights gone removed (333333333333)" in words
    assert "files outside the store: (none) -> 555555555555" in words


def test_many_changed_files_are_counted():
    before = record()
    after = before.model_copy(update={"code": {**dict.fromkeys(before.code, "0" * 64), "new.py": "1" * 64}})
    assert f"and {len(before.code) + 1 - 4} more" in summarise(changes(before, after))


def test_true_and_one_are_different_values():
    before = record().model_copy(update={"config": {"flag": True}})
    after = before.model_copy(update={"config": {"flag": 1}})
    assert [c.field for c in changes(before, after)] == ["flag"]
    assert before.stage_key != after.stage_key


def test_flatten_keeps_empty_containers():
    assert flatten({"a": {}, "b": [], "c": {"d": [1, {"e": 2}]}}) == {"a": {}, "b": [], "c.d.0": 1, "c.d.1.e": 2}


def parsed_files(monkeypatch, root, *references):
    """Names of the files that a new process would parse, and what it finds."""
    parsed, real = [], ast.parse
    monkeypatch.setattr(code.ast, "parse", lambda source, filename: parsed.append(filename) or real(source, filename))
    code._parse_imports.cache_clear()
    code._parsed.cache_clear()
    found = reachable_files(references, root=root)
    code._parsed().save()
    return parsed, found


def test_a_file_is_parsed_once_for_all_processes(tmp_path, monkeypatch):
    store = tmp_path / "cache" / "imports.json"
    monkeypatch.setattr(code, "place", lambda: store)
    root = tmp_path / "tree"
    write_tree(root, {"eval/__init__.py": "", "eval/a.py": "from . import b\n", "eval/b.py": "import m4v.core\n"})
    parsed, first = parsed_files(monkeypatch, root, "eval.a:run")
    assert sorted(parsed) == ["__init__.py", "a.py", "b.py"]
    parsed, second = parsed_files(monkeypatch, root, "eval.a:run")
    assert (parsed, second) == ([], first)
    write_tree(root, {"eval/b.py": "import eval.c\n", "eval/c.py": "x = 1\n"})
    parsed, edited = parsed_files(monkeypatch, root, "eval.a:run")
    assert (sorted(parsed), set(edited)) == (["b.py", "c.py"], {*first, "eval/c.py"})
    write_tree(root, {"m4v/a.py": "from . import b\n", "m4v/b.py": "import eval.a\n", "m4v/__init__.py": ""})
    assert "m4v/b.py" in parsed_files(monkeypatch, root, "m4v.a:run")[1], "the same bytes mean other files elsewhere"


@pytest.mark.parametrize("damage", ["", "[1]", '{"parser": 1}', "truncated", "altered", "another parser"])
def test_a_damaged_store_of_parsed_files_is_parsed_anew(tmp_path, monkeypatch, damage):
    store = tmp_path / "imports.json"
    monkeypatch.setattr(code, "place", lambda: store)
    write_tree(tmp_path, {"eval/__init__.py": "", "eval/a.py": "import eval.b\n", "eval/b.py": "y = 1\n"})
    _, expected = parsed_files(monkeypatch, tmp_path, "eval.a:run")
    stored = json.loads(store.read_bytes())
    changed = {
        "truncated": store.read_text()[:-9],
        "altered": json.dumps({**stored, "files": stored["files"].replace("eval.b", "eval.x")}),
        "another parser": json.dumps({**stored, "parser": "0" * 64}),
    }
    store.write_text(changed.get(damage, damage))
    parsed, found = parsed_files(monkeypatch, tmp_path, "eval.a:run")
    assert (len(parsed), found) == (3, expected)


def test_without_a_place_to_keep_them_files_are_parsed(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    write_tree(tmp_path, {"eval/__init__.py": "", "eval/a.py": "x = 1\n"})
    for where in (None, blocked / "imports.json"):
        monkeypatch.setattr(code, "place", lambda where=where: where)
        parsed, found = parsed_files(monkeypatch, tmp_path, "eval.a:run")
        assert (len(parsed), set(found)) == (2, {"eval/__init__.py", "eval/a.py"})
