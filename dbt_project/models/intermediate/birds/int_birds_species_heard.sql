-- One row per recording and species heard on it: the one it is filed under, and those in the background.
with foreground as (
    select
        recording_id,
        scientific_name,
        english_name,
        family,
        bird_order,
        'foreground' as role
    from {{ ref('int_birds_recordings') }}
    where scientific_name is not null
),

background as (
    select
        recordings.recording_id,
        {{ tidy("also.name") }} as scientific_name,
        null as english_name,
        null as family,
        null as bird_order,
        'background' as role
    from {{ ref('int_birds_recordings') }} as recordings
    cross join lateral jsonb_array_elements_text(recordings.background_species) as also (name)
),

heard as (
    select * from foreground
    union all
    select * from background
    where scientific_name like '% %'
)

select distinct on (recording_id, scientific_name)
    recording_id,
    scientific_name,
    split_part(scientific_name, ' ', 1) as genus,
    split_part(scientific_name, ' ', 2) as epithet,
    english_name,
    family,
    bird_order,
    role
from heard
order by recording_id asc, scientific_name asc, role desc
