"""The warehouse's foundation: roles, schemas, the tables of ``ops`` and ``ml``, and who may do what.

Roles are made without login: passwords are the business of whoever runs the server.

Revision ID: 0001
Revises:
"""

from alembic import op

revision = "0001"
down_revision = None

ROLES = """
do $$
declare
    name text;
begin
    foreach name in array array['loader', 'transformer', 'trainer', 'analyst'] loop
        if not exists (select from pg_roles where rolname = name) then
            execute format('create role %I nologin', name);
        end if;
    end loop;
    execute format('grant connect, create on database %I to transformer', current_database());
    execute format('grant connect on database %I to loader, trainer, analyst', current_database());
    execute format('revoke temporary on database %I from public', current_database());
    execute format('grant temporary on database %I to loader, transformer, trainer', current_database());
    if not pg_has_role(current_user, 'loader', 'member') then
        execute format('grant loader, transformer, trainer, analyst to %I', current_user);
    end if;
end $$;
alter role analyst set statement_timeout = '5min';
revoke create on schema public from public;
"""

SCHEMAS = """
create schema raw authorization loader;
create schema ops;
create schema ml;
create schema staging authorization transformer;
create schema core authorization transformer;
create schema marts authorization transformer;
comment on schema raw is 'every distinct version of every record, append-only, as loaded';
comment on schema ops is 'the platform''s own records: loads, cursors, landing index, quarantine, audits';
comment on schema ml is 'splits, dataset versions, scores, predictions';
comment on schema staging is 'the current version of published loads, one view per raw table';
comment on schema core is 'normalized entities, keys enforced';
comment on schema marts is 'published, audited star schemas and training marts';
"""

OPS = """
create table ops.load (
    source text not null,
    load bigint not null,
    resource text not null,
    lane text not null default 'live',
    slice text,
    interval_start timestamptz,
    interval_end timestamptz,
    state text not null check (state in ('loaded', 'published', 'rejected')),
    pages int not null,
    rows bigint not null,
    versions bigint not null,
    quarantined bigint not null,
    bytes bigint not null,
    fetched_at timestamptz not null,
    loaded_at timestamptz not null default now(),
    judged_at timestamptz,
    reason text,
    run_id text,
    cursor jsonb not null default '{}',
    primary key (source, load)
);
comment on column ops.load.cursor is 'where to go on after this load, if it is not rejected';
comment on table ops.load is 'one sealed journal segment in the warehouse; readers see only published ones';
comment on column ops.load.load is 'number of the journal segment, counted per source';
comment on column ops.load.rows is 'records that parse gave';
comment on column ops.load.versions is 'records that were new or differed from the current version';
create index on ops.load (source, resource, load) where state = 'published';

create table ops.cursor (
    source text not null,
    resource text not null,
    lane text not null default 'live',
    cursor jsonb not null,
    load bigint not null,
    updated_at timestamptz not null default now(),
    primary key (source, resource, lane)
);
comment on table ops.cursor is 'where to go on; written in the transaction of the rows it speaks of';

create table ops.landing (
    source text not null,
    load bigint not null,
    position bigint not null,
    resource text not null,
    key text not null,
    sha256 text not null,
    name text not null,
    bytes bigint not null,
    content_type text not null,
    fetched_at timestamptz not null,
    meta jsonb not null default '{}',
    primary key (source, load, position)
);
comment on table ops.landing is 'index of the landing journal: which page landed where, in order';
create index on ops.landing (key);
create index on ops.landing (sha256);

create table ops.quarantine (
    id bigint generated always as identity primary key,
    source text not null,
    load bigint not null,
    resource text not null,
    position bigint,
    payload text,
    reason text not null,
    landing text,
    run_id text,
    at timestamptz not null default now(),
    replayed_at timestamptz
);
create index on ops.quarantine (source, load);

create table ops.ledger (
    source text not null,
    resource text not null,
    lane text not null default 'live',
    slice text not null,
    interval_start timestamptz,
    interval_end timestamptz,
    state text not null check (state in ('running', 'done', 'failed')),
    attempts int not null default 1,
    load bigint,
    error text,
    run_id text,
    updated_at timestamptz not null default now(),
    primary key (source, resource, lane, slice)
);
comment on table ops.ledger is 'each slice that was asked for, and what became of it: gaps and failures show here';

create table ops.audit (
    id bigint generated always as identity primary key,
    subject text not null,
    kind text not null check (kind in ('load', 'mart')),
    domain text not null,
    severity text not null check (severity in ('none', 'info', 'warning', 'critical')),
    success boolean not null,
    expectations int not null,
    failed jsonb not null default '[]',
    statistics jsonb not null default '{}',
    docs_url text,
    at timestamptz not null default now()
);
create index on ops.audit (subject, at);

create table ops.publication (
    domain text not null,
    version int not null,
    schema text not null,
    marts text[] not null,
    fingerprint jsonb not null default '{}',
    invocation_id text,
    published_at timestamptz not null default now(),
    primary key (domain, version)
);
comment on table ops.publication is 'which versioned schema the views in marts showed, and since when';
"""

ML = """
create table ml.split_group (
    domain text not null,
    group_key text not null,
    split text not null check (split in ('train', 'valid', 'test')),
    origin text not null check (origin in ('published', 'assigned')),
    recorded_at timestamptz not null default now(),
    primary key (domain, group_key)
);
comment on table ml.split_group is 'the split of a leakage group, given when it was first seen and kept';

create table ml.dataset (
    version text primary key,
    name text not null,
    mart text not null,
    where_clause text not null default '',
    rows bigint not null,
    uri text not null,
    manifest jsonb not null,
    created_at timestamptz not null default now()
);

create table ml.score (
    model text not null,
    model_version int not null,
    dataset_version text not null,
    split text not null,
    metric text not null,
    value double precision not null,
    low double precision,
    high double precision,
    direction text not null check (direction in ('more', 'less')),
    baseline_name text,
    baseline double precision,
    baseline_low double precision,
    baseline_high double precision,
    rows bigint,
    at timestamptz not null default now(),
    primary key (model, model_version, dataset_version, split, metric)
);

create table ml.promotion (
    id bigint generated always as identity primary key,
    model text not null,
    model_version int not null,
    champion_before int,
    difference double precision,
    low double precision,
    high double precision,
    promoted boolean not null,
    reason text not null,
    at timestamptz not null default now()
);

create table ml.prediction (
    model text not null,
    model_version int not null,
    dataset_version text not null,
    key text not null,
    output jsonb not null,
    score double precision,
    predicted_at timestamptz not null default now(),
    primary key (model, model_version, key)
);
create index on ml.prediction (model, key, predicted_at);
"""

GRANTS = """
grant usage on schema ops to loader, transformer, trainer;
grant usage on schema ml to transformer, trainer;
grant usage on schema raw to transformer;
grant usage on schema marts to analyst, trainer;

grant select on all tables in schema ops to loader, transformer, trainer;
grant insert, update on ops.load, ops.cursor, ops.ledger, ops.audit, ops.quarantine to loader;
grant insert on ops.landing to loader;
grant delete on ops.load, ops.cursor, ops.landing, ops.quarantine to loader;
grant insert on ops.audit to transformer;
grant insert, delete on ops.publication to transformer;

grant select on all tables in schema ml to transformer, trainer;
grant insert on ml.split_group to transformer;
grant insert, update, delete on ml.dataset, ml.score, ml.promotion, ml.prediction to trainer;

alter default privileges for role loader in schema raw grant select on tables to transformer;
alter default privileges for role transformer in schema marts grant select on tables to analyst, trainer;
"""


def upgrade() -> None:
    for part in (ROLES, SCHEMAS, OPS, ML, GRANTS):
        # exec_driver_sql: the text holds colons and percent signs that are SQL's own
        op.get_bind().exec_driver_sql(part.replace("%", "%%"))


def downgrade() -> None:
    raise NotImplementedError("the foundation is not taken down: drop the database instead")
