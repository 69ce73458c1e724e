-- Of which species does one recordist hold most of the minutes, so that a model might learn the microphone instead?
with minutes as (
    select
        recordings.species_id,
        recordists.name as recordist,
        recordings.is_simulated,
        sum(recordings.length_s) / 60 as minutes
    from {{ ref('fct_recordings') }} as recordings
    inner join {{ ref('dim_recordist') }} as recordists on recordings.recordist_id = recordists.recordist_id
    where recordings.species_id is not null and recordings.length_s > 0
    group by recordings.species_id, recordists.name, recordings.is_simulated
),

ranked as (
    select
        species_id,
        recordist,
        is_simulated,
        sum(minutes) over (partition by species_id) as minutes,
        minutes / sum(minutes) over (partition by species_id) as share,
        count(*) over (partition by species_id) as recordists,
        row_number() over (partition by species_id order by minutes desc, recordist asc) as place
    from minutes
)

select
    species.scientific_name,
    species.english_name,
    ranked.recordist as first_recordist,
    round(100 * ranked.share::numeric, 1) as percent_of_minutes,
    ranked.recordists,
    round(ranked.minutes::numeric, 1) as minutes,
    ranked.is_simulated
from ranked
inner join {{ ref('dim_species') }} as species on ranked.species_id = species.species_id
where ranked.place = 1
order by percent_of_minutes desc, species.scientific_name asc
