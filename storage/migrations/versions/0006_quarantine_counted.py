"""Quarantine tells what speaks against a load from notes of things that never came.

Revision ID: 0006
Revises: 0005
"""

from alembic import op

revision = "0006"
down_revision = "0005"

COLUMN = """
alter table ops.quarantine add counted boolean not null default true;
comment on column ops.quarantine.counted is 'whether it counts towards the share past which its load is rejected'
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(COLUMN)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("alter table ops.quarantine drop counted")
