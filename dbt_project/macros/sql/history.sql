{#-
    Every version of a source's resource that was ever published, those that took the key away among them, with the
    time at which the source gave it. History is made of these, never of the time at which a job happened to run.

    source_name: the source, as in ops.load.source
    resource: the resource; its raw table has the source's name alone when both names are the same
-#}
{% macro published_versions(source_name, resource) -%}
{%- set table = source_name if resource == source_name else source_name ~ '_' ~ resource -%}
select
    versions.*,
    coalesce(pages.fetched_at, loads.fetched_at) as _fetched_at
from {{ source('raw', table) }} as versions
inner join {{ source('ops', 'load') }} as loads
    on versions._load = loads.load and loads.source = '{{ source_name }}' and loads.state = 'published'
left join {{ source('ops', 'landing') }} as pages
    on pages.source = '{{ source_name }}' and versions._load = pages.load and versions._page = pages.position
{%- endmacro %}

{#-
    A slowly changing dimension of type 2 (Kimball): one row per key and span of time in which the attributes were the
    same. A span that a withdrawal or a deletion ends has no successor until the key comes back.

    versions: a relation with key, attributes, load_number, position, is_deleted, fetched_at
    key, attributes: names of columns
-#}
{% macro slowly_changing(versions, key, attributes) -%}
with versions as (
    -- of several versions in one page the last counts: there was no time at which the others held
    select distinct on ({{ key | join(', ') }}, fetched_at)
        {{ (key + attributes) | join(',\n        ') }},
        load_number,
        position,
        is_deleted,
        fetched_at,
        row({{ attributes | join(', ') }}, is_deleted) as state
    from {{ versions }}
    order by {{ key | join(', ') }}, fetched_at, load_number desc, position desc
),

compared as (
    select
        *,
        lag(state) over in_time as state_before
    from versions
    window in_time as (partition by {{ key | join(', ') }} order by fetched_at, load_number, position)
),

spans as (
    select
        *,
        row_number() over in_time as version,
        lead(fetched_at) over in_time as valid_to
    from compared
    where state_before is distinct from state
    window in_time as (partition by {{ key | join(', ') }} order by fetched_at, load_number, position)
)

select
    {{ surrogate_key(key + ['fetched_at']) }} as version_id,
    {{ key | join(',\n    ') }},
    version::integer as version,
    {{ attributes | join(',\n    ') }},
    fetched_at as valid_from,
    valid_to,
    valid_to is null as is_current
from spans
where not is_deleted
{%- endmacro %}
