-- depends_on: {{ ref('sweep_birds') }}
with heard as (
    select
        links.recording_id,
        array_agg(species.scientific_name order by species.scientific_name) as species,
        min(species.scientific_name) filter (where links.role = 'foreground') as primary_species
    from {{ ref('recording_species') }} as links
    inner join {{ ref('species') }} as species on links.species_id = species.species_id
    group by links.recording_id
)

select
    clips.clip_id,
    recordings.recording_id,
    recordings.source,
    recordings.label_set,
    coalesce(heard.species, '{}'::text[]) as species,
    coalesce(heard.primary_species, '') as primary_species,
    candidates.group_key,
    candidates.split,
    candidates.split_origin,
    clips.start_s,
    clips.end_s,
    clips.sample_rate,
    clips.samples,
    clips.clip_object,
    recordings.snr_db,
    recordists.name as recordist,
    recordings.licence_code as licence,
    licences.may_redistribute,
    licences.may_use_commercially,
    licences.may_change,
    recordings.is_simulated
from {{ ref('int_birds_candidates') }} as candidates
inner join {{ ref('clip') }} as clips on candidates.clip_id = clips.clip_id
inner join {{ ref('recording') }} as recordings on candidates.recording_id = recordings.recording_id
left join {{ ref('recordist') }} as recordists on recordings.recordist_id = recordists.recordist_id
left join heard on recordings.recording_id = heard.recording_id
inner join {{ ref('licence') }} as licences on recordings.licence_code = licences.licence_code
where candidates.excluded_because is null
