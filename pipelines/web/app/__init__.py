"""The web page `m4v serve`: server-rendered pages over a workspace's ledger and store, without external requests."""

from pipelines.web.app.factory import create_app

__all__ = ["create_app"]
