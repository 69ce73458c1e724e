-- depends_on: {{ ref('sweep_birds') }}
with heard as (
    select
        species_id,
        count(*) filter (where role = 'foreground') as foreground_recordings,
        count(*) filter (where role = 'background') as background_recordings
    from {{ ref('recording_species') }}
    group by species_id
),

detected as (
    select
        species_id,
        count(*) as detections
    from {{ ref('detection') }}
    group by species_id
)

select
    species.species_id,
    species.scientific_name,
    species.english_name,
    genera.name as genus,
    families.name as family,
    orders.name as bird_order,
    species.accepted_name,
    species.authority,
    species.conservation_status,
    species.account_url,
    coalesce(heard.foreground_recordings, 0) as foreground_recordings,
    coalesce(heard.background_recordings, 0) as background_recordings,
    coalesce(detected.detections, 0) as detections
from {{ ref('species') }} as species
inner join {{ ref('genus') }} as genera on species.genus_id = genera.genus_id
inner join {{ ref('family') }} as families on genera.family_id = families.family_id
inner join {{ ref('bird_order') }} as orders on families.bird_order_id = orders.bird_order_id
left join heard on species.species_id = heard.species_id
left join detected on species.species_id = detected.species_id
