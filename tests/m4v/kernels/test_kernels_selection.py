"""Which kernels are chosen, what is refused, and how libraries are found; no CUDA device needed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from m4v.core.errors import ConfigError
from m4v.kernels import kernel_set, kernel_summary, selection, use_kernels
from m4v.kernels.libraries import _import_below, convolution_kernel, ssd_kernel
from m4v.kernels.scan import causal_conv_silu, convolves_fast, selective_scan, ssd_scan, uses_library, uses_own_scan
from m4v.kernels.selection import FRAMES_VERSION, OWN_CONVOLUTION, OWN_GLUE, OWN_SCAN, version_of


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path for packages of this test."""
    monkeypatch.syspath_prepend(tmp_path)
    caches = (selection._versions.clear, ssd_kernel.cache_clear, convolution_kernel.cache_clear)
    for clear in caches:
        clear()
    yield tmp_path
    for clear in caches:
        clear()


def distribution(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_plain_torch_on_the_cpu(install: Path) -> None:
    distribution(install, "mamba-ssm", "9.1")
    assert kernel_set("cpu") == {
        "scan": "torch", "convolution": "torch", "attention": "dense", "glue": "torch", "norm": "torch",
    }  # fmt: skip
    assert kernel_summary("cpu") == "torch"
    x = torch.zeros(1, 8, 16, dtype=torch.bfloat16)
    with use_kernels(scan="mamba_ssm", attention="flex"):
        assert not uses_library(x)
        assert not convolves_fast(x, 4)


def test_cuda_names_what_is_installed(install: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in (("mamba-ssm", "9.1"), ("causal-conv1d", "8.2"), ("triton", "7.3")):
        distribution(install, name, version)
    frames = f"frames {FRAMES_VERSION} torch {version_of('torch')}"
    assert kernel_set("cuda") == {
        "scan": f"{OWN_SCAN}, mamba-ssm 9.1", "convolution": OWN_CONVOLUTION, "attention": frames,
        "glue": OWN_GLUE, "norm": "triton 7.3",
    }  # fmt: skip
    own = f"{OWN_SCAN}, mamba-ssm 9.1, {OWN_CONVOLUTION}"  # mamba-ssm scans what our kernels do not take
    assert kernel_summary("cuda") == f"{own}, {frames}, {OWN_GLUE}, triton 7.3"
    monkeypatch.setenv("M4V_KERNELS", "torch")
    assert kernel_summary("cuda") == frames
    monkeypatch.setenv("M4V_ATTENTION", "flex")
    assert kernel_summary("cuda") == f"flex {version_of('torch')}"
    monkeypatch.setenv("M4V_ATTENTION", "dense")
    assert kernel_summary("cuda") == "torch"
    with use_kernels(scan="mamba_ssm"):
        assert kernel_set("cuda")["scan"] == "mamba-ssm 9.1"
        assert kernel_set("cuda")["attention"] == "dense"
    assert kernel_summary("cuda") == "torch"
    with use_kernels(scan="triton", attention="frames"):
        assert kernel_summary("cuda") == f"{own}, {frames}, {OWN_GLUE}, triton 7.3"


def test_our_scan_needs_triton_only(install: Path) -> None:
    with use_kernels(scan="triton"):
        if version_of("triton") is None:
            with pytest.raises(ConfigError, match=r"our scans need triton.*M4V_KERNELS=auto"):
                kernel_set("cuda")
        selection._versions.clear()
        distribution(install, "triton", "7.3")
        assert kernel_set("cuda")["scan"].startswith(OWN_SCAN)
        assert not uses_own_scan(torch.zeros(1, 8, 16, dtype=torch.bfloat16), 16, 16)  # not on the CPU


def test_our_scan_takes_only_sizes_that_were_right_on_a_gpu(
    install: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What decides is the type and whether a tensor lies on CUDA: a stand-in needs no GPU."""
    distribution(install, "triton", "7.3")
    monkeypatch.setattr("m4v.kernels.scan.scans_with_triton", lambda: True)
    monkeypatch.setattr("m4v.kernels.scan.scan_choice", lambda: "triton")
    short, exact = (SimpleNamespace(is_cuda=True, is_cpu=False, dtype=t) for t in (torch.bfloat16, torch.float32))
    assert [uses_own_scan(short, *s) for s in ((64, 64), (16, 16), (32, 128), (24, 24))] == [True, True, False, False]  # type: ignore[arg-type]
    assert [uses_own_scan(exact, *s) for s in ((64, 64), (16, 16))] == [True, False]  # type: ignore[arg-type]
    assert "not shown right on a GPU for heads of 32, states of 128 and torch.bfloat16" in caplog.text


@pytest.mark.parametrize("setting", [None, "0", "1"])
def test_deterministic_block_sizes_come_from_no_cache(
    install: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    """The library looks at the setting when it is imported."""
    module = install / "mamba_ssm" / "ops" / "triton" / "ssd_combined.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "import os\nfound = os.environ.get('TRITON_CACHE_AUTOTUNING')\ndef mamba_chunk_scan_combined(): return found\n"
    )
    monkeypatch.setenv("TRITON_CACHE_AUTOTUNING", setting or "")
    if setting is None:
        monkeypatch.delenv("TRITON_CACHE_AUTOTUNING")
    for fixed in (True, False):
        for name in [n for n in sys.modules if n.startswith("mamba_ssm")]:
            monkeypatch.delitem(sys.modules, name)
        ssd_kernel.cache_clear()
        torch.use_deterministic_algorithms(fixed)
        try:
            found = ssd_kernel()()
        finally:
            torch.use_deterministic_algorithms(False)
        assert found == (None if fixed else setting or "1")
        assert os.environ["TRITON_CACHE_AUTOTUNING"] == (setting or "1")


def test_a_choice_holds_in_every_thread(install: Path) -> None:
    """Backward passes recompute blocks in threads of their own."""
    for name in ("mamba-ssm", "triton"):
        distribution(install, name, "1.0")
    with use_kernels(scan="torch"), ThreadPoolExecutor(1) as other, use_kernels(attention="dense"):
        assert other.submit(kernel_summary, "cuda").result() == "torch"
    assert kernel_set("cuda")["scan"] == f"{OWN_SCAN}, mamba-ssm 1.0"


def test_what_cannot_be_had_is_refused(install: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if version_of("mamba-ssm") is None:
        with use_kernels(scan="mamba_ssm"), pytest.raises(ConfigError, match=r"mamba-ssm is not installed.*\[gpu\]"):
            kernel_set("cuda")
    monkeypatch.setenv("M4V_KERNELS", "mamba")
    with pytest.raises(ConfigError, match=r"no such kernels: 'mamba'.*auto, torch, mamba_ssm"):
        kernel_set("cuda")
    assert kernel_set("cpu")["scan"] == "torch"


def test_the_glue_of_blocks(install: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if version_of("triton") is None:
        with (
            use_kernels(glue="triton"),
            pytest.raises(ConfigError, match=r"need triton, which is not installed.*M4V_GL"),
        ):
            kernel_set("cuda")
        selection._versions.clear()
        distribution(install, "triton", "7.3")
    for scan, glue, expected in (
        ("auto", "auto", OWN_GLUE), ("auto", "triton", OWN_GLUE), ("auto", "torch", "torch"),
        ("triton", "auto", OWN_GLUE), ("triton", "torch", "torch"), ("torch", "triton", OWN_GLUE),
        ("torch", "auto", "torch"),
    ):  # fmt: skip
        monkeypatch.setenv("M4V_KERNELS", scan)
        monkeypatch.setenv("M4V_GLUE", glue)
        assert kernel_set("cuda")["glue"] == expected
        assert kernel_set("cpu")["glue"] == "torch"
    monkeypatch.setenv("M4V_GLUE", "no")
    with pytest.raises(ConfigError, match=r"no such kernels: 'no'.*M4V_GLUE"):
        kernel_set("cuda")


def test_a_library_that_does_not_load_is_an_error(install: Path) -> None:
    (install / "causal_conv1d").mkdir()
    (install / "causal_conv1d" / "__init__.py").write_text("")
    (install / "causal_conv1d" / "causal_conv1d_interface.py").write_text("raise ImportError('undefined symbol')")
    with pytest.raises(ConfigError, match=r"causal-conv1d is installed but does not load: undefined symbol.*M4V_KERN"):
        convolution_kernel()


def test_submodules_load_without_their_package(install: Path) -> None:
    (install / "heavy" / "ops").mkdir(parents=True)
    (install / "heavy" / "__init__.py").write_text("from heavy.ops import answer\nloaded = True")
    (install / "heavy" / "ops" / "__init__.py").write_text("answer = 42")
    assert _import_below("heavy.ops").answer == 42
    assert "heavy" not in sys.modules
    import heavy
    from heavy.ops import answer

    assert (heavy.loaded, answer) == (True, 42)
    with pytest.raises(ImportError, match="no package"):
        _import_below("no_such_package_here.ops")


def test_too_large_calls_are_refused_before_any_kernel_runs() -> None:
    """Shapes alone: an expanded zero takes no memory. The kernels would overflow their int32 in silence."""
    zero = torch.zeros(1)
    x, dt = zero.expand(8, 80_000, 30, 64), zero.expand(8, 80_000, 30)
    with pytest.raises(ConfigError, match=r"SSD scan is too large for mamba-ssm.*2457600000.*smaller micro-batch"):
        ssd_scan(x, dt, zero.expand(30), x, x, zero.expand(30), None)
    with pytest.raises(ConfigError, match="convolution is too large for causal-conv1d"):
        causal_conv_silu(zero.expand(16, 80_000, 1920), zero.expand(1920, 4), zero.expand(1920))
    wide, group = zero.expand(16, 80_000, 1920), zero.expand(16, 80_000, 120, 16)
    with pytest.raises(ConfigError, match="selective scan is too large"):
        selective_scan(wide, wide, zero.expand(1920, 16), group, group, zero.expand(1920))


def test_choosing_loads_no_torch() -> None:
    code = "import sys, m4v.kernels as k; k.kernel_set('cuda'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
