"""Alembic's entry. :meth:`chatbot.record.database.Database.migrate` hands in the open connection;
logging is the application's and is left alone."""

from alembic import context

from chatbot.record.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    # SQLite cannot alter most of a table in place: Alembic then copies it
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
