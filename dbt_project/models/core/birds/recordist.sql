{{ config(unique_key='recordist_id') }}

-- Of the ways in which a name is written, the one that is not all capitals, then the most frequent.
select distinct on (recordist_id)
    recordist_id,
    source,
    recordist_key,
    recordist as name
from {{ ref('int_birds_recordings') }}
where recordist_id is not null
group by recordist_id, source, recordist_key, recordist
order by recordist_id asc, (recordist = upper(recordist)) asc, count(*) desc, recordist asc
