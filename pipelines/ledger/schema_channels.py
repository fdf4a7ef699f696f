"""Tables of approvals and pins."""

from __future__ import annotations
