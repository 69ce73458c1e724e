"""Each role has so many connections and no more: workers cannot take those of readers, nor of Airflow.

An analyst who has gone for lunch in the middle of a transaction does not keep the marts from being switched.

Revision ID: 0007
Revises: 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"

# With what Airflow and MLflow keep in their pools this is less than the servers of both installations allow.
LIMITS = {"loader": 32, "transformer": 16, "trainer": 16, "analyst": 20}


def upgrade() -> None:
    for role, limit in LIMITS.items():
        op.get_bind().exec_driver_sql(f"alter role {role} connection limit {limit}")
    op.get_bind().exec_driver_sql("alter role analyst set idle_in_transaction_session_timeout = '10min'")


def downgrade() -> None:
    for role in LIMITS:
        op.get_bind().exec_driver_sql(f"alter role {role} connection limit -1")
    op.get_bind().exec_driver_sql("alter role analyst reset idle_in_transaction_session_timeout")
