{{ config(materialized='view') }}

-- Leakage groups: sentences that differ in case, punctuation, digits, placeholders or markup are one sentence.
select
    'text' as domain,
    group_key,
    published_split
from {{ ref('int_text_pairs') }}
where ineligible_because is null
