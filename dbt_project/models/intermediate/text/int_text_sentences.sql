{{ config(materialized='view') }}

-- Sentences that may be trained on, once each, as they are compared with one another.
select distinct on (group_key)
    group_key,
    normalised_source as normalised_text
from {{ ref('int_text_pairs') }}
where ineligible_because is null
order by group_key asc, normalised_source asc
