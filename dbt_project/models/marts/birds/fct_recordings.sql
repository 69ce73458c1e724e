-- depends_on: {{ ref('sweep_birds') }}
with heard as (
    select
        recording_id,
        min(species_id) filter (where role = 'foreground') as species_id,
        count(*) filter (where role = 'background') as background_species
    from {{ ref('recording_species') }}
    group by recording_id
),

clips as (
    select
        recording_id,
        count(*) as clips,
        max(end_s) as clipped_s
    from {{ ref('clip') }}
    group by recording_id
),

sounds as (
    select
        links.recording_id,
        array_agg(kinds.name order by kinds.name) as sound_types
    from {{ ref('recording_sound_type') }} as links
    inner join {{ ref('sound_type') }} as kinds on links.sound_type_id = kinds.sound_type_id
    group by links.recording_id
)

select
    recordings.recording_id,
    recordings.source,
    recordings.recording_key,
    heard.species_id,
    recordings.recordist_id,
    places.country,
    places.locality,
    places.latitude,
    places.longitude,
    recordings.recorded_on,
    recordings.recorded_at,
    coalesce(recordings.recorded_year, extract(year from recordings.recorded_on)::integer) as recorded_year,
    coalesce(recordings.recorded_month, extract(month from recordings.recorded_on)::integer) as recorded_month,
    coalesce(
        recordings.part_of_day,
        case
            when recordings.recorded_at < '05:00' then 'night'
            when recordings.recorded_at < '12:00' then 'morning'
            when recordings.recorded_at < '18:00' then 'afternoon'
            when recordings.recorded_at < '22:00' then 'evening'
            when recordings.recorded_at is not null then 'night'
        end
    ) as part_of_day,
    coalesce(sounds.sound_types, '{}'::text[]) as sound_types,
    recordings.subspecies,
    recordings.sex,
    recordings.life_stage,
    coalesce(recordings.length_s, clips.clipped_s) as length_s,
    recordings.quality,
    recordings.label_set,
    recordings.is_labelled,
    coalesce(heard.background_species, 0) as background_species,
    coalesce(clips.clips, 0) as clips,
    recordings.licence_code,
    licences.title as licence,
    recordings.is_simulated,
    recordings.page_url
from {{ ref('recording') }} as recordings
inner join {{ ref('licence') }} as licences on recordings.licence_code = licences.licence_code
left join {{ ref('place') }} as places on recordings.place_id = places.place_id
left join heard on recordings.recording_id = heard.recording_id
left join clips on recordings.recording_id = clips.recording_id
left join sounds on recordings.recording_id = sounds.recording_id
