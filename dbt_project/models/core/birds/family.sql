{{ config(unique_key='family_id') }}

select distinct
    {{ surrogate_key(['family']) }} as family_id,
    {{ surrogate_key(['bird_order']) }} as bird_order_id,
    family as name
from {{ ref('int_birds_taxonomy') }}
