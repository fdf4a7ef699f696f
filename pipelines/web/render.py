"""Templates to HTML: autoescaped Jinja2 with the few filters the pages share, styles and scripts inlined."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eval.ablation.export import flop

_PACKAGE = "pipelines.web"


@cache
def environment() -> Environment:
    env = Environment(
        loader=PackageLoader(_PACKAGE, "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for function in (duration, moment, size, number, signed, percent, short, base64, flop):
        env.filters[function.__name__] = function
    env.globals["inline"] = inline
    return env


def inline(name: str) -> Markup:
    """A file of `static/`, to stand inside <style> or <script>; our own text, so it is not escaped."""
    text = (resources.files(_PACKAGE) / "static" / name).read_text()
    if "</" in text:
        raise ValueError(f"{name} would end its own element")
    return Markup(text)


def base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def render(template: str, **values: object) -> str:
    return environment().get_template(template).render(**values)


def duration(seconds: float | None) -> str:
    """4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(text: str) -> str:
    """2026-11-21 12:47 UTC of an ISO time; other text stays as it is."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits for values of everyday size, thousands separated; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """With its sign, a true minus among them."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}".replace("-", "\N{MINUS SIGN}")


def short(identifier: str | None) -> str:
    """The first ten digits of a digest; ids of another form stay whole."""
    return (identifier or "")[:10] if identifier and len(identifier) >= 32 else identifier or ""
