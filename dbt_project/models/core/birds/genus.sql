{{ config(unique_key='genus_id') }}

select
    {{ surrogate_key(['genus']) }} as genus_id,
    {{ surrogate_key(['family']) }} as family_id,
    genus as name
from {{ ref('int_birds_taxonomy') }}
