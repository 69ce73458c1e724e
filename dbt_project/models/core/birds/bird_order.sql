{{ config(unique_key='bird_order_id') }}

select distinct
    {{ surrogate_key(['bird_order']) }} as bird_order_id,
    bird_order as name
from {{ ref('int_birds_taxonomy') }}
