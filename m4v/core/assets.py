"""Where fetched assets (demo footage, packaged model weights) lie on this machine.

`dataprep.assets` fetches and checks them; any package may read them here. Recipes name them as
`asset:RELATIVE/PATH`, so no machine path enters a recipe or a digest.
"""

from __future__ import annotations

import os
from pathlib import Path

from m4v.core.errors import InputError


def assets_dir() -> Path:
    """`M4V_ASSETS`, else `~/.cache/m4v/assets`."""
    return Path(os.environ.get("M4V_ASSETS") or Path.home() / ".cache" / "m4v" / "assets")


def asset(path: str) -> Path:
    """A fetched asset; raises InputError with the fetch command when it is not there."""
    full = assets_dir() / path
    if not full.exists():
        raise InputError("asset is not on this machine", value=path, where=str(assets_dir()), next_step="make assets")
    return full


def resolve(location: str) -> str:
    """`asset:x/y` to a local path; any other location comes back unchanged."""
    return str(asset(location.removeprefix("asset:"))) if location.startswith("asset:") else location
