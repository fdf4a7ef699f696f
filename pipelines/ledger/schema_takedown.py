"""Tables of takedown cases."""

from __future__ import annotations
