"""Withdrawals: loads that met what was withdrawn, and dataset versions that hold it.

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"

COLUMNS = """
alter table ops.load add column forgotten bigint not null default 0;
comment on column ops.load.forgotten is 'withdrawn records that its pages hold once more, until these are erased';
alter table ml.dataset add column withdrawn jsonb;
comment on column ml.dataset.withdrawn is
    'by withdrawal: when, and how many rows of the version are of what was withdrawn; null where none is';
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(COLUMNS)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(
        "alter table ops.load drop column forgotten; alter table ml.dataset drop column withdrawn"
    )
