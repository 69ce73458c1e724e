"""Sentences that are nearly the same are one leakage group.

Revision ID: 0009
Revises: 0008
"""

from alembic import op

revision = "0009"
down_revision = "0008"

TABLE = """
create table ml.near_duplicate (
    group_key text primary key,
    words bigint[] not null,
    bands bigint[] not null,
    cluster_key text not null,
    is_new boolean not null default true
);
create index near_duplicate_cluster on ml.near_duplicate (cluster_key);
create index near_duplicate_new on ml.near_duplicate (group_key) where is_new;
comment on table ml.near_duplicate is 'hashes of the words of each sentence, and its cluster of near duplicates';
grant select, insert, update, delete on ml.near_duplicate to transformer;
grant select on ml.near_duplicate to trainer
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLE)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("drop table ml.near_duplicate")
