"""Spot checks of the codec: how far decoded latents are from the pictures they were made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from m4v.core.errors import DataIntegrityError


def psnr_figures(rows: Sequence[Mapping[str, object]]) -> dict[str, float | int]:
    """For the run's metrics, of rows of `reconstructions.json`: how many, mean and lowest PSNR in dB."""
    found = _decibels(rows)
    return {
        "psnr_clips": len(found),
        **({"psnr_db_mean": round(fmean(found), 2), "psnr_db_lowest": min(found)} if found else {}),
    }


def check_psnr(rows: Sequence[Mapping[str, object]], least: float | None) -> None:
    """Raises DataIntegrityError when the mean is below `least`, naming the worst clip."""
    found = _decibels(rows)
    if least is None or not found or fmean(found) >= least:
        return
    worst = rows[found.index(min(found))]
    raise DataIntegrityError(
        f"latents decode to pictures of {fmean(found):.1f} dB, {least:g} dB are required", value=worst["clip_id"],
        where=f"worst of {len(found)} clips: {min(found):.1f} dB",
        next_step="check that the codec's weights are the right ones (m4v weights check), or lower encode.min_psnr_db",
    )  # fmt: skip


def _decibels(rows: Sequence[Mapping[str, object]]) -> list[float]:
    return [float(str(row["psnr_db"])) for row in rows]
