"""Alembic environment of the ledger; `pipelines.ledger.migrate` runs it."""
