"""Alembic environment: runs on the connection that `pipelines.ledger.migrate` hands over."""

from alembic import context

from pipelines.ledger import (  # noqa: F401 - they add their tables
    schema_channels,
    schema_clips,
    schema_exposure,
    schema_takedown,
)
from pipelines.ledger.schema import Base

# SQLite has transactional DDL too, once the driver leaves transactions alone.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
