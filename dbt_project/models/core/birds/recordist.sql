{{ config(unique_key='recordist_id') }}

select distinct
    recordist_id,
    source,
    recordist as name
from {{ ref('int_birds_recordings') }}
where recordist_id is not null
