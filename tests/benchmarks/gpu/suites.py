"""What the driver runs: correctness tests as gates, benchmarks behind them, the most wanted first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TEXT_FEATURES, COMPILED = ".carry/text.safetensors", ".carry/compiled.tar.xz"
ASSETS = ".carry/assets.tar.xz"
CPU = ("--device", "cpu")


@dataclass(frozen=True)
class Job:
    """One child process.

    `words` are its command line after the interpreter, with `{out}` for its result file, `{left}` for the seconds it
    has, `{work}` for a folder that all jobs share, `{fast}` for one in memory, `{keep}` for the folder of results and
    `{more}` for one whose files come back with the logs (the JSON in it is the result where there is no `{out}`).
    `gib`: memory of a GPU that it needs beside other jobs; None: it is alone on its GPU. `gpus`: how many it needs, all
    that are there if it is negative, none if it is 0. `needs`: a file that must lie in the checkout.
    """

    name: str
    words: tuple[str, ...]
    most_s: float
    least_s: float = 20.0
    gates: tuple[str, ...] = ()
    gib: float | None = None
    gpus: int = 1
    needs: str | None = None
    how: str = ""  # to get what it needs
    tiny: tuple[str, ...] = ("--tiny",)  # further words of a rehearsal on the CPU
    interpreted: bool = False  # the rehearsal runs Triton's interpreter
    prints: bool = False  # the last line of its log is its result
    tests: bool = False


def gate(name: str, most_s: float = 240.0, gib: float = 12.0, gpus: int = 1) -> Job:
    """A file of tests/gpu; it shares its GPU with others. Where mamba-ssm tunes its kernels on an empty cache, beside
    others, that alone takes one and a half minutes."""
    words = (
        "-m", "pytest", f"tests/gpu/test_gpu_{name}.py", "-m", "gpu", "-p", "no:cacheprovider", "--junitxml", "{out}"
    )  # fmt: skip
    return Job(f"test_{name}", words, most_s, gib=gib, gpus=gpus, tiny=(), interpreted=True, tests=True)


def bench(
    name: str, most_s: float, *more: str, gates: tuple[str, ...] = (), part: str = "", least_s: float = 20.0
) -> Job:
    """A speed benchmark, or a part of one."""
    words = (f"tests/benchmarks/gpu/bench_{name}.py", "--out", "{out}", "--limit-s", "{left}", *more)
    gates = tuple(f"test_{g}" for g in gates)
    return Job(f"{name}{part}", words, most_s, least_s, gates, interpreted=name in ("ssd", "composition"))


def end(part: str, form: str, most_s: float) -> Job:
    """Whole videos in one form, so that several GPUs share the forms."""
    return bench("generation", most_s, "--only-end", "--all-ends", "--only", form, part=f"_end{part}", least_s=90)


def reward(name: str, *more: str) -> Job:
    words = ("tests/benchmarks/gpu/bench_reward.py", "--folder", "{fast}/reward", "--json", "{out}", *more)
    return Job(name, words, 280, 60, tiny=("--tiny", *CPU))


def learning(mixer: str, partner: str) -> Job:
    # Both at once on one GPU: a step of so small a model leaves most of it idle.
    words = (
        "tests/benchmarks/gpu/bench_learning.py", "run", "--features", TEXT_FEATURES, "--corpus", "{work}/corpus",
        "--mixer", mixer, "--partner", partner, "--share", "{work}/share", "--keep", "{work}/" + mixer,
        "--limit-s", "{left}", "--out", "{more}",
    )  # fmt: skip
    small = (
        "--steps-first",
        "4",
        "--steps",
        "4",
        "--width",
        "128",
        "--double",
        "1",
        "--single",
        "1",
        "--batch",
        "3",
        "--samples",
        "1",
        "--every",
        "24",
    )
    return Job(f"learning_{mixer}", words, 540, 200, ("corpus",), gib=35, needs=TEXT_FEATURES, how=FEATURES_HOW,
               tiny=(*CPU, *small, "--workers", "1"))  # fmt: skip


FEATURES_HOW = f"python tests/benchmarks/gpu/bench_learning.py features {TEXT_FEATURES}, where the text encoder is"
CORPUS = Job(
    "corpus",
    ("tests/benchmarks/gpu/bench_learning.py", "corpus", "--features", TEXT_FEATURES, "--corpus", "{work}/corpus"),
    150, gib=0, gpus=0, needs=TEXT_FEATURES, how=FEATURES_HOW, tiny=("--clips", "1"),
)  # fmt: skip
SCALING = Job(
    "scaling",
    ("tests/benchmarks/gpu/bench_scaling.py", "--limit-s", "{left}", "--folder", "{fast}/scaling", "--json", "{out}",
     "--kernels", COMPILED, "--keep-kernels", "{keep}/compiled.tar.xz"),
    560, 150, gpus=-1, tiny=("--size", "tiny", *CPU, "--most-ranks", "1", "--only", "zero2"),
)  # fmt: skip
PARALLEL = Job(
    "parallel", ("tests/benchmarks/gpu/bench_parallel.py", "--limit-s", "{left}", "--json", "{out}"), 400, 60, gpus=-1
)
REHEARSE = Job(
    "rehearse",
    ("tests/benchmarks/gpu/bench_rehearse.py", "--limit-s", "{left}", "--folder", "{fast}/rehearse",
     "--spare", "{work}/rehearse", "--json", "{out}", "--assets", ASSETS),
    570, 150, needs=ASSETS, how=f"python tests/benchmarks/gpu/rehearsal_assets.py pack {ASSETS}, where assets are",
)  # fmt: skip
HOST = Job(
    "host", ("tests/benchmarks/bench_host.py", "--device", "cuda", "--json"), 200, tiny=(*CPU, "--repeats", "1"),
    prints=True,
)  # fmt: skip
KERNEL_GATES = ("glue_operators", "ssd", "recomposition", "frames")
SUITES: dict[str, tuple[Job, ...]] = {
    "first": (
        gate("glue_operators"), gate("ssd"), gate("recomposition"), gate("frames"), gate("checkpointing", 150),
        gate("compiled"), gate("host", 240), gate("convolution", 120),
        bench("ssd", 120, "--lengths", "15488", gates=("ssd",)),
        bench("composition", 60, gates=("glue_operators", "recomposition")),
        bench("blocks", 240, "--cases", "first", gates=KERNEL_GATES),
        bench("attention", 90, gates=("frames",)),
        bench("budget", 90, gates=KERNEL_GATES),
        bench("convolution", 60, gates=("convolution",)),
        bench("blocks", 240, "--cases", "rest", gates=KERNEL_GATES, part="_rest", least_s=45),
        bench("ssd", 120, "--lengths", "9008", "7568", "11888", "8880", "4096", "32768", "75600", gates=("ssd",),
              part="_rest"),
        gate("ssd_sizes", 150),
    ),
    "second": (
        gate("sampling", 150),
        bench("generation", 300, "--only-sum", least_s=60),
        bench("step", 280, least_s=60),
        HOST,
        bench("step", 280, "--frames", "241", part="_241", least_s=60),
        bench("step", 240, "--frames", "57", part="_57", least_s=60),
    ),
    "ends": (
        end("", "M4V, ours", 280), end("_released", "attention, as released", 380),
        end("_graphs", "M4V, ours, CUDA graphs, decoding beside", 260),
        end("_compiled", "attention, compiled, all scores", 320), end("_flex", "attention, FlexAttention", 340),
        end("_stock", "M4V, stock (mamba-ssm, plain glue)", 360),
    ),
    "training": (
        gate("training", 420, 20), gate("deterministic", 240), gate("saving", 120), gate("scores", 150),
        gate("vae", 150), gate("monitor", 240), gate("model"), gate("scans", 420), gate("attention"),
        gate("wan_codec", 120), gate("shards", gpus=2),
    ),
    "reward": (gate("scores", 150), reward("reward"), reward("reward_of_8", "--ranks", "8")),
    "wan": (bench("wan_layer", 560, least_s=120),),
    "learning": (CORPUS, learning("mm_dim", "attention"), learning("attention", "mm_dim")),
    "scaling": (SCALING,),
    "rehearse": (REHEARSE,),
    "parallel": (PARALLEL,),
}  # fmt: skip


def jobs_of(suites: Sequence[str], only: Sequence[str] = ()) -> list[Job]:
    """The jobs of these suites, each once; with `only` those whose name holds one of these, and their gates."""
    jobs = {job.name: job for suite in suites for job in SUITES[suite]}
    wanted = {name for name in jobs if not only or any(part in name for part in only)}
    wanted |= {g for name in wanted for g in jobs[name].gates}
    return [job for name, job in jobs.items() if name in wanted]
