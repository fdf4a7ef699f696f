"""Steps of a training stage on one GPU, at real latent size: deterministic mode against default, ZeRO-3 and ZeRO-0.

    python tests/benchmarks/bench_training_gpu.py --width 1024 --double 4 --single 12 --frames 57

The whole product path runs: torchrun, shards, loader, DeepSpeed, saves. Medians over the steps after the third.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from training_bench import Bench, make_bench
from training_helpers import TEXT

from m4v.config import ModelConfig
from training.config import EngineConfig, InitConfig, OptimizerConfig, OrderConfig, TrainConfig, latents_of


def steps_of(work: Path) -> list[dict[str, float]]:
    timings = work / "timings.jsonl"
    if not (work / "result.json").exists():
        raise SystemExit((work / "output.log").read_text()[-3000:])
    return [json.loads(line) for line in timings.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--double", type=int, default=4)
    parser.add_argument("--single", type=int, default=12)
    parser.add_argument("--frames", type=int, default=57)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 160), help="of the latents")
    parser.add_argument("--tokens", type=int, default=15_504, help="of a pack")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    model = ModelConfig(
        width=options.width, heads=options.width // 64, double_blocks=options.double, single_blocks=options.single,
        text_dim=384, pooled_dim=384, text_slots=8,
    )  # fmt: skip
    config = TrainConfig(
        name="stage", steps=options.steps, save_every=options.steps, ema_decay=0,
        order=OrderConfig(frames=options.frames, tokens_per_pack=options.tokens, packs=1, image_every=0),
        optimizer=OptimizerConfig(lr=1e-4, warmup_steps=3),
    )  # fmt: skip
    height, width = options.size
    with tempfile.TemporaryDirectory() as folder:
        bench: Bench = make_bench(
            Path(folder), InitConfig(model=model, text_encoder=TEXT), config, device=options.device,
            t=latents_of(options.frames), h=height, w=width,
        )  # fmt: skip
        print(
            f"{'run':28} {'step s':>8} {'forward':>8} {'backward':>8} {'optimizer':>9} {'data wait':>9} {'save s':>7}"
        )
        for stage, deterministic in ((3, False), (3, True), (0, False)):
            engine = EngineConfig(zero_stage=stage, dtype="bfloat16", deterministic=deterministic)
            name = f"zero{stage}-{'deterministic' if deterministic else 'default'}"
            rows = steps_of(bench.run(name, config.model_copy(update={"engine": engine}), ranks=1))
            steady = rows[3:-1]
            parts = {k: statistics.median(r[k] for r in steady) for k in ("forward", "backward", "optimizer", "data")}
            step = statistics.median(r["total"] for r in steady)
            print(f"{name:28} {step:8.3f} {parts['forward']:8.3f} {parts['backward']:8.3f} {parts['optimizer']:9.3f} "
                  f"{parts['data'] / step:9.4f} {rows[-1]['save']:7.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
