"""Alembic's entry: one transaction for all pending migrations, one migrator at a time."""

from alembic import context
from sqlalchemy import Connection, text

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_schema="public")
with connection.begin():
    connection.execute(text("select pg_advisory_xact_lock(hashtext('lyrebird.migrate'))"))
    context.run_migrations()
