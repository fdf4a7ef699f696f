"""Tables of the clip index (projections of artifacts: they can be made again from the bytes)."""

from __future__ import annotations
