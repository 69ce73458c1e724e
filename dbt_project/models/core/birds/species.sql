{{ config(unique_key='species_id') }}

select
    {{ surrogate_key(['scientific_name']) }} as species_id,
    {{ surrogate_key(['genus']) }} as genus_id,
    scientific_name,
    epithet,
    english_name,
    accepted_name,
    authority,
    conservation_status,
    account_url,
    case when account_url is not null then account_licence_code end as account_licence_code
from {{ ref('int_birds_species') }}
