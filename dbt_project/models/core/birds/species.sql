{{ config(unique_key='species_id') }}

select
    {{ surrogate_key(['scientific_name']) }} as species_id,
    {{ surrogate_key(['genus']) }} as genus_id,
    scientific_name,
    epithet,
    min(english_name) as english_name
from {{ ref('int_birds_species_heard') }}
group by scientific_name, genus, epithet
