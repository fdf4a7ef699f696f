"""`m4v flops`: what a recipe's model costs, and the paper's tables on cost beside the printed figures.

JSON. `--table4`, `--table3`: {table, rows, rows_ssd}, rows of the paper's preset (mamba1) and of the product (ssd):
name, params, params_b (billions), and for 121 and 241 frames tflops_N, counted_N, forward_N; Table 4 also paper_N,
residual_N (tflops / paper - 1), paper_params_b, and `note` where a figure needs one. Otherwise {name, params, parts:
{part: parameters}, forwards}; a forward has frames, stage, tokens (image), visible (share of the scores that the
frame-causal mask keeps), tflops, counted, forward. `--parts` leaves forwards out.
"""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m4v.core.errors import ConfigError
from pipelines.cli.output import JsonOption, SetOption, console, print_json, print_rows

if TYPE_CHECKING:
    from m4v.config import ModelConfig
    from m4v.flops import Setting

STAGE_NAMES = ("low", "mid", "high")
LATENT_TIME, LATENT_SPACE = 8, 8  # pixels per latent place
FULL_SIZE = "M4V at 768p"
FRAMES, HEIGHT, WIDTH = (121, 241), 768, 1280

RecipeOption = Annotated[
    str | None, typer.Argument(help="Shipped recipe or YAML file; without one the full-size model at 768p.")
]
Table4Option = Annotated[bool, typer.Option("--table4", help="Table 4 of the paper: every architecture at 768p.")]
Table3Option = Annotated[bool, typer.Option("--table3", help="Table 3 of the paper: text, registers, temporal branch.")]
PartsOption = Annotated[bool, typer.Option("--parts", help="Parameters of each part of the model.")]


def register(app: typer.Typer) -> None:
    app.command()(flops)


def flops(
    recipe: RecipeOption = None,
    set_: SetOption = None,
    table4: Table4Option = False,
    table3: Table3Option = False,
    parts: PartsOption = False,
    json_: JsonOption = False,
) -> None:
    """Parameters and TFLOPs of one forward (batch 1, last latent frame), without a GPU.

    tflops: the mixers, counted as the paper does.
    counted: the mixers as built, by torch's counter, text and every score.
    forward: the whole model, by the same counter.
    residual: tflops against the paper's figure (JSON: a fraction).
    visible: the share of the scores that the frame-causal mask keeps.
    The tables print the paper's SSM (mamba1; JSON: rows) and the product's
    (ssd; JSON: rows_ssd).
    """
    if sum((table4, table3, parts)) > 1:
        raise typer.BadParameter("--table4, --table3 and --parts exclude each other")
    if (table4 or table3) and (recipe or set_):
        raise typer.BadParameter("the paper's tables are about full-size models: they take no recipe and no --set")
    if table4 or table3:
        _tables(4 if table4 else 3, json_)
    else:
        _model(recipe, set_ or [], parts, json_)


def _tables(number: int, json_: bool) -> None:
    from m4v import flops_table

    make = flops_table.table4 if number == 4 else flops_table.table3
    rows, rows_ssd = make("mamba1"), make("ssd")
    if json_:
        print_json({"table": number, "rows": rows, "rows_ssd": rows_ssd})
        return
    cells = [
        [ssm, *_cells(row, frames)]
        for ssm, part in (("mamba1", rows), ("ssd", rows_ssd))
        for frames in FRAMES
        for row in part
    ]
    paper = ["paper", "residual"] if number == 4 else []
    columns = ["ssm", "frames", "model", "params B", "tflops", *paper, "counted", "forward"]
    print_rows(
        columns, cells, title=f"Table {number}: one forward at 768p, TFLOPs of the mixers and of the whole model"
    )
    for note in {row["note"] for row in rows if "note" in row}:
        print(textwrap.fill(f"* {note}", console().width) if sys.stdout.isatty() else f"* {note}")


def _cells(row: dict[str, Any], frames: int) -> list[str]:
    figure = {name: row.get(f"{name}_{frames}") for name in ("tflops", "paper", "residual", "counted", "forward")}
    cells = [str(frames), row["name"] + "*" * ("note" in row), f"{row['params_b']:.3f}"]
    for name, value in figure.items():
        if value is not None:
            cells.append(f"{value:+.1%}" if name == "residual" else f"{value:.2f}")
    return cells


def _model(recipe: str | None, overrides: list[str], parts: bool, json_: bool) -> None:
    from m4v.flops import meta_model, parameters_by_part, total

    name, config, settings = _what(recipe, overrides)
    model = meta_model(config)
    by_part = parameters_by_part(model)
    forwards = [] if parts else [_forward(model, frames, setting) for frames, setting in settings]
    if json_:
        facts: dict[str, Any] = {"name": name, "params": total(model), "parts": by_part}
        print_json(facts | ({} if parts else {"forwards": forwards}))
        return
    if parts:
        rows = [(part, f"{count:,}", f"{count / total(model):.1%}") for part, count in by_part.items()]
        print_rows(("part", "parameters", "share"), [*rows, ("all", f"{total(model):,}", "100.0%")], title=name)
        return
    columns = ("frames", "stage", "tokens", "visible", "tflops", "counted", "forward")
    shown = [[_figure(f[c]) for c in columns] for f in forwards]
    print_rows(columns, shown, title=f"{name}: {total(model):,} parameters")


def _figure(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _what(recipe: str | None, overrides: list[str]) -> tuple[str, ModelConfig, list[tuple[int, Setting]]]:
    """Name, model and forwards: the videos that the recipe generates, or 121 and 241 frames at 768p."""
    from m4v.config import ModelConfig
    from m4v.flops import STAGES, Setting

    if recipe is None:
        if overrides:
            raise typer.BadParameter("--set changes a recipe: name one")
        name, config, height, width = FULL_SIZE, ModelConfig.model_validate({}), HEIGHT, WIDTH
        lengths: tuple[int, ...] = FRAMES
    else:
        from pipelines.recipe import load_recipe

        loaded = load_recipe(recipe, overrides)
        wanted = loaded.generate
        if not isinstance(loaded.model, ModelConfig):
            raise ConfigError(
                "the tables are of models with a pyramid", value=loaded.name,
                next_step=f"m4v plan {loaded.name} tells a Wan model's parameters and operations",
            )  # fmt: skip
        name, config, height, width = loaded.name, loaded.model, wanted.height, wanted.width
        lengths = (wanted.frames,)
    settings = [
        (frames, Setting((frames - 1) // LATENT_TIME + 1, stage, height // LATENT_SPACE, width // LATENT_SPACE))
        for frames in lengths
        for stage in range(STAGES)
    ]
    return name, config, settings


def _forward(model: Any, frames: int, setting: Setting) -> dict[str, Any]:
    from m4v.flops import count_forward, visible_share
    from m4v.flops_table import mixer_flops

    counted, column = count_forward(model, setting), setting.column(model.config.patch)
    return {
        "frames": frames,
        "stage": STAGE_NAMES[setting.stage],
        "tokens": column.tokens,
        "visible": visible_share(column),
        "tflops": mixer_flops(model.config, setting) / 1e12,
        "counted": counted.mixer_total / 1e12,
        "forward": counted.forward / 1e12,
    }
