{{ config(unique_key=['recording_id', 'species_id'], indexes=[{'columns': ['species_id']}]) }}

select
    recording_id,
    {{ surrogate_key(['scientific_name']) }} as species_id,
    role
from {{ ref('int_birds_species_heard') }}
