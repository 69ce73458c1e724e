"""What audits have learnt so far is in another form than the profiles of now: they learn anew.

Revision ID: 0008
Revises: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.get_bind().exec_driver_sql("update ops.audit set statistics = '{}'")


def downgrade() -> None:
    op.get_bind().exec_driver_sql("update ops.audit set statistics = '{}'")
