"""Crawls under way: which pages are to be asked for, are being asked for, and have landed.

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = """
create table ops.crawl (
    crawl text primary key,
    source text not null,
    resource text not null,
    question jsonb not null,
    began_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz,
    unique (source, resource)
);
comment on table ops.crawl is 'crawls whose load has not been judged yet; one of a resource at a time';
comment on column ops.crawl.question is 'what is asked for: with another question a crawl begins anew';
comment on column ops.crawl.ended_at is 'when its last page had landed; null while it is under way';

create table ops.frontier (
    crawl text not null,
    fingerprint text not null,
    number bigint generated always as identity,
    request jsonb not null,
    state text not null check (state in ('waiting', 'taken', 'landed', 'failed', 'known')),
    priority int not null default 0,
    tries int not null default 0,
    landing text,
    content_type text,
    reason text,
    lasting boolean not null default false,
    at timestamptz not null default clock_timestamp(),
    primary key (crawl, fingerprint)
);
comment on table ops.frontier is 'requests of the crawls under way';
comment on column ops.frontier.fingerprint is 'what tells requests apart: the same one is not made twice';
comment on column ops.frontier.number is 'order in which they were found';
comment on column ops.frontier.request is 'address, callback of the spider, and its arguments';
comment on column ops.frontier.state is
    'waiting; taken by the crawler; landed, and its links followed; failed; known: found, and not asked for';
comment on column ops.frontier.landing is 'landed page, there before the state says so';
comment on column ops.frontier.reason is 'why it failed';
comment on column ops.frontier.lasting is 'whether there is no use in asking again';
create index on ops.frontier (crawl, priority desc, number) where state = 'waiting';

grant select on ops.crawl, ops.frontier to loader, transformer, trainer;
grant insert, update, delete on ops.crawl, ops.frontier to loader;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(TABLES.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql("drop table ops.frontier, ops.crawl")
