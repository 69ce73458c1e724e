"""Rows of training marts that were withdrawn: no freeze takes them, from marts of before the withdrawal neither.

Revision ID: 0005
Revises: 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"

TABLE = """
create table ml.withdrawn (
    mart text not null,
    key_sha256 text not null,
    at timestamptz not null default now(),
    primary key (mart, key_sha256)
);
comment on table ml.withdrawn is 'rows that a training mart must not hold any more, by the SHA-256 of their keys';
grant select on ml.withdrawn to transformer, trainer;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLE)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("drop table ml.withdrawn")
