{{ config(unique_key='recordist_id') }}

-- Of the ways in which a name is written, the one that is not all capitals, then the most frequent.
with ways as (
    select
        recordist_id,
        source,
        recordist_key,
        recordist as name,
        count(*) as times
    from {{ ref('int_birds_recordings') }}
    where recordist_id is not null
    group by recordist_id, source, recordist_key, recordist
)

select distinct on (recordist_id)
    recordist_id,
    source,
    recordist_key,
    name
from ways
order by recordist_id asc, (name = upper(name)) asc, times desc, name asc
