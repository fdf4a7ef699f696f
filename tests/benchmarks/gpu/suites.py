"""What the driver runs: correctness tests as gates, benchmarks behind them, the most wanted first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

TEXT_FEATURES, COMPILED = ".carry/text.safetensors", ".carry/compiled.tar.xz"
ASSETS = ".carry/assets.tar.xz"
CPU = ("--device", "cpu")
# A process that trains picks one scan; ours needs none of the shapes that mamba-ssm's kernels try in every process.
OWN = (("M4V_KERNELS", "triton"),)


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
    settings: tuple[tuple[str, str], ...] = ()  # of its environment on a GPU, where they are not set


def gate(
    name: str, most_s: float = 240.0, gib: float = 5.0, gpus: int = 1, workers: int = 1,
    settings: tuple[tuple[str, str], ...] = (),
) -> Job:  # fmt: skip
    """A file of tests/gpu; it shares its GPU with others. Kernels are compiled by one processor each, so `workers`
    take its tests in turn. Where mamba-ssm tunes its kernels on an empty cache, beside others, that alone takes one and
    a half minutes."""
    words = (
        "-m", "pytest", f"tests/gpu/test_gpu_{name}.py", "-m", "gpu", "-p", "no:cacheprovider", "--junitxml", "{out}"
    )  # fmt: skip
    if workers > 1 and find_spec("xdist") is not None:
        words += ("-n", str(workers), "--dist", "worksteal")
    return Job(
        f"test_{name}", words, most_s, gib=gib, gpus=gpus, tiny=(), interpreted=True, tests=True, settings=settings
    )


def warm(name: str, part: str, *more: str, gib: float) -> Job:
    """A benchmark beside the gates, so that its kernels are compiled before it is timed; its figures are not kept."""
    out = f"{{work}}/warm_{name}_{part}.json"
    words = (f"tests/benchmarks/gpu/bench_{name}.py", "--out", out, "--limit-s", "{left}", "--repeats", "1", *more)
    return Job(f"warm_{name}_{part}", words, 170, gib=gib, interpreted=name == "ssd")


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
               tiny=(*CPU, *small, "--workers", "1"), settings=OWN)  # fmt: skip


FEATURES_HOW = f"python tests/benchmarks/gpu/bench_learning.py features {TEXT_FEATURES}, where the text encoder is"
CORPUS = Job(
    "corpus",
    ("tests/benchmarks/gpu/bench_learning.py", "corpus", "--features", TEXT_FEATURES, "--corpus", "{work}/corpus"),
    240, gib=0, gpus=0, needs=TEXT_FEATURES, how=FEATURES_HOW, tiny=("--clips", "1"),
)  # fmt: skip


def scaling(name: str, most_s: float, *more: str, tiny: tuple[str, str]) -> Job:
    words = (
        "tests/benchmarks/gpu/bench_scaling.py", "--limit-s", "{left}", "--folder", "{fast}/scaling",
        "--json", "{out}", "--kernels", COMPILED, "--keep-kernels", "{keep}/compiled.tar.xz", *more,
    )  # fmt: skip
    small = ("--size", "tiny", *CPU, "--most-ranks", tiny[0], "--only", tiny[1])
    return Job(name, words, most_s, 150, gpus=-1, tiny=small, settings=OWN)


SCALING = scaling("scaling", 560, tiny=("1", "zero2"))
# What two GPUs can show in half a call: two ranks with saves and a restart, the same work on one of the two, the other
# lengths and ZeRO-2.
PAIR = scaling(
    "scaling_pair", 330, "--alone", "121f zero3 x2", "121f zero2 x2", "--saves", "2",
    "--beside", "121f zero3 x1", "121f zero2 x1", "241f zero3 x1", "57f zero3 x1", tiny=("2", "zero3 x2"),
)  # fmt: skip
PARALLEL = Job(
    "parallel", ("tests/benchmarks/gpu/bench_parallel.py", "--limit-s", "{left}", "--json", "{out}"), 400, 60,
    ("test_temporal",), gpus=-1,
)  # fmt: skip
REHEARSE = Job(
    "rehearse",
    ("tests/benchmarks/gpu/bench_rehearse.py", "--limit-s", "{left}", "--folder", "{fast}/rehearse",
     "--spare", "{work}/rehearse", "--json", "{out}", "--assets", ASSETS),
    570, 150, needs=ASSETS, how=f"python tests/benchmarks/gpu/rehearsal_assets.py pack {ASSETS}, where assets are",
    settings=OWN,
)  # fmt: skip
HOST = Job(
    "host", ("tests/benchmarks/bench_host.py", "--device", "cuda", "--json"), 200, tiny=(*CPU, "--repeats", "1"),
    prints=True, settings=OWN,
)  # fmt: skip
CHECKPOINTING = gate("checkpointing", workers=3, settings=OWN)
SSD, COMPOSITION = (
    bench("ssd", 230, "--lengths", "15488", gates=("ssd", "ssd_segments")),
    bench("composition", 80, gates=("glue_operators", "recomposition")),
)
BUDGET, CONVOLUTION = bench("budget", 150), bench("convolution", 150, gates=("convolution",))
FORWARD = bench("forward", 120)
# Each variant of a block is held against float64 before it is timed.
BLOCKS = bench("blocks", 280, "--cases", "first", gates=("ssd",), least_s=60)
SUM = bench("generation", 300, "--only-sum", least_s=100)
LONG, SHORT = (bench("step", 240, "--frames", n, part=f"_{n}", least_s=60) for n in ("241", "57"))
GRAPHS, RELEASED = (
    end("_graphs", "M4V, ours, CUDA graphs, decoding beside", 240), end("_released", "attention, as released", 380)
)  # fmt: skip
WAN, TEMPORAL = bench("wan_layer", 560, gates=("temporal",), least_s=120), gate("temporal")
SUITES: dict[str, tuple[Job, ...]] = {
    # The longest and those that others wait for come first; SUM and LONG wait for no gate, so a second GPU has them.
    "first": (
        gate("ssd", gib=34, workers=4), gate("ssd_segments", workers=3), gate("recomposition", workers=3),
        gate("glue_operators"), gate("pieces"), gate("products"),
        gate("frames", workers=2), gate("compiled"), gate("convolution", workers=4),
        warm("ssd", "128", "--only", "mamba-ssm 128", gib=5), warm("ssd", "64", "--only", "mamba-ssm 64", gib=5),
        warm("ssd", "256", "--only", "mamba-ssm 256", gib=5), warm("ssd", "own", "--only", "ours", gib=5),
        warm("blocks", "module", "--cases", "first", "--only", "Mamba2 module", gib=24),
        warm("blocks", "attention", "--cases", "first", "--only", "attention", gib=12),
        warm("convolution", "all", gib=6),
        BUDGET, SSD, COMPOSITION, BLOCKS, SUM, FORWARD, LONG, CONVOLUTION, SHORT,
    ),
    "second": (
        CORPUS, gate("training", 420, 12), gate("scans", 420, workers=4), gate("monitor"), gate("host"),
        gate("sampling"), gate("deterministic", 300, workers=3), CHECKPOINTING,
        learning("mm_dim", "attention"), learning("attention", "mm_dim"), REHEARSE, TEMPORAL, WAN, GRAPHS,
    ),
    "third": (PAIR, TEMPORAL, WAN, GRAPHS, RELEASED),
    # What a change of scan, glue and convolution wants again on one GPU, beside `learning` on another.
    "fourth": (
        gate("ssd", gib=34, workers=4), gate("ssd_segments", workers=3), gate("recomposition", workers=3),
        gate("glue_operators"), gate("products"), gate("compiled"), gate("convolution", workers=4),
        warm("ssd", "128", "--only", "mamba-ssm 128", gib=5), warm("ssd", "64", "--only", "mamba-ssm 64", gib=5),
        warm("ssd", "256", "--only", "mamba-ssm 256", gib=5), warm("ssd", "own", "--only", "ours", gib=5),
        warm("blocks", "module", "--cases", "first", "--only", "Mamba2 module", gib=24),
        warm("blocks", "attention", "--cases", "first", "--only", "attention", gib=12),
        FORWARD, SSD, replace(SUM, most_s=140), COMPOSITION, BLOCKS, BUDGET, CONVOLUTION,
    ),
    "more": (
        gate("ssd", gib=34, workers=4), gate("ssd_segments", workers=3), gate("recomposition", workers=3),
        gate("glue_operators"), gate("pieces"), gate("products"), gate("frames", workers=2),
        bench("step", 280, least_s=60), HOST,
        bench("attention", 90, gates=("frames",)),
        bench("blocks", 240, "--cases", "rest", gates=("ssd",), part="_rest", least_s=45),
        bench("ssd", 280, "--lengths", "9008", "7568", "11888", "8880", "4096", "32768", "75600", gates=("ssd",),
              part="_rest"),
        gate("ssd_sizes", 150),
    ),
    "ends": (
        end("", "M4V, ours", 280), RELEASED, GRAPHS,
        end("_compiled", "attention, compiled, all scores", 320), end("_flex", "attention, FlexAttention", 340),
        end("_stock", "M4V, stock (mamba-ssm, plain glue)", 360),
    ),
    "training": (
        gate("training", 420, 12), gate("deterministic", 300, workers=3), gate("saving", 120), gate("scores", 150),
        gate("vae", 150), gate("monitor"), gate("model", workers=3), gate("scans", 420, workers=4),
        gate("attention"), gate("wan_codec", 120), CHECKPOINTING, gate("host"), gate("sampling"),
        gate("shards", gpus=2),
    ),
    "reward": (gate("scores", 150), reward("reward"), reward("reward_of_8", "--ranks", "8")),
    "wan": (TEMPORAL, WAN),
    "learning": (CORPUS, learning("mm_dim", "attention"), learning("attention", "mm_dim")),
    "scaling": (SCALING,),
    "rehearse": (REHEARSE,),
    "parallel": (TEMPORAL, PARALLEL),
}  # fmt: skip


def jobs_of(suites: Sequence[str], only: Sequence[str] = ()) -> list[Job]:
    """The jobs of these suites, each once; with `only` those whose name holds one of these, and their gates."""
    jobs = {job.name: job for suite in suites for job in SUITES[suite]}
    wanted = {name for name in jobs if not only or any(part in name for part in only)}
    wanted |= {g for name in wanted for g in jobs[name].gates}
    return [job for name, job in jobs.items() if name in wanted]
