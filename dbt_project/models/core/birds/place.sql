{{ config(unique_key='place_id') }}

select distinct
    place_id,
    country,
    locality,
    latitude,
    longitude,
    altitude_m
from {{ ref('int_birds_recordings') }}
where place_id is not null
