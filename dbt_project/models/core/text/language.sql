{{ config(unique_key='iso_639_3') }}

select
    iso_639_3,
    iso_639_1,
    name
from {{ ref('languages') }}
where counts_as is null
