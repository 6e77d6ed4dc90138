"""Alembic's entry: runs the migrations over the connection that `Database.migrate` passes in."""

from alembic import context

from outrider.fleet.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
