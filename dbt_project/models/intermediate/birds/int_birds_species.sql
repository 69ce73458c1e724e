-- One row per species that is heard on a recording, detected in the field or told about, with what is known of it.
with heard as (
    select
        scientific_name,
        min(english_name) as english_name,
        min(family) as family,
        min(bird_order) as bird_order
    from {{ ref('int_birds_species_heard') }}
    group by scientific_name
),

named as (
    select scientific_name from heard
    union
    select {{ species_of('scientific_name') }} from {{ ref('stg_field_recorder__detections') }}
    union
    select {{ species_of('scientific_name') }} from {{ ref('stg_species_accounts__accounts') }}
),

accounts as (
    select distinct on ({{ species_of('scientific_name') }})
        {{ species_of('scientific_name') }} as species,
        *
    from {{ ref('stg_species_accounts__accounts') }}
    order by {{ species_of('scientific_name') }} asc, scientific_name asc
)

select
    named.scientific_name,
    split_part(named.scientific_name, ' ', 1) as genus,
    split_part(named.scientific_name, ' ', 2) as epithet,
    coalesce(heard.english_name, accounts.title) as english_name,
    coalesce(heard.family, accounts.family) as family,
    coalesce(heard.bird_order, accounts.bird_order) as bird_order,
    accounts.accepted_name,
    accounts.authority,
    accounts.conservation_status,
    accounts.page_url as account_url,
    {{ licence_code('accounts.licence') }} as account_licence_code
from named
left join heard on named.scientific_name = heard.scientific_name
left join accounts on named.scientific_name = accounts.species
where named.scientific_name is not null
