"""How far ingestion is behind the streams it reads.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"

TABLE = """
create table ops.stream_lag (
    source text not null,
    resource text not null,
    stream text not null,
    consumer_group text not null,
    undelivered bigint not null,
    pending bigint not null,
    oldest_at timestamptz,
    observed_at timestamptz not null default clock_timestamp(),
    primary key (source, resource, observed_at)
);
comment on table ops.stream_lag is 'messages that wait, as seen before each fetch and after each acknowledgement';
comment on column ops.stream_lag.undelivered is 'messages that no consumer has been given';
comment on column ops.stream_lag.pending is 'messages that a consumer was given and that are not acknowledged';
comment on column ops.stream_lag.oldest_at is 'when the oldest of them came; null when none waits';
grant select on ops.stream_lag to loader, transformer, trainer;
grant insert, delete on ops.stream_lag to loader;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLE.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql("drop table ops.stream_lag")
