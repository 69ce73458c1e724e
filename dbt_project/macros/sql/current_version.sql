{#-
    The current version of a source's resource: per key the latest one, by (load, position), of the loads that passed
    their audit, without the keys that the source has taken away. Raw keeps every version; nothing else reads raw.

    source_name: the source, as in ops.load.source
    resource: the resource; its raw table has the source's name alone when both names are the same
-#}
{% macro current_version(source_name, resource) -%}
    {%- set table = source_name if resource == source_name else source_name ~ '_' ~ resource -%}
select
    latest.*,
    pages.key as _landing,
    pages.fetched_at as _fetched_at
from (
    select distinct on (versions._key) versions.*
    from {{ source('raw', table) }} as versions
    inner join {{ source('ops', 'load') }} as loads on versions._load = loads.load
    where loads.source = '{{ source_name }}' and loads.state = 'published'
    order by versions._key desc, versions._load desc, versions._position desc
) as latest
left join {{ source('ops', 'landing') }} as pages
    on pages.source = '{{ source_name }}' and latest._load = pages.load and latest._page = pages.position
where not latest._deleted
{%- endmacro %}
