-- How fast do new species turn up as recordings come in, and is the search at its end?
with labelled as (
    select
        label_set,
        is_simulated,
        species_id,
        row_number() over (partition by label_set order by recorded_on, recording_key) as recordings,
        row_number() over (partition by label_set, species_id order by recorded_on, recording_key) as times_seen
    from {{ ref('fct_recordings') }}
    where species_id is not null
),

counted as (
    select
        label_set,
        is_simulated,
        recordings,
        count(*) filter (where times_seen = 1) over (partition by label_set order by recordings) as species,
        ntile(20) over (partition by label_set order by recordings) as step
    from labelled
)

select
    label_set,
    max(recordings) as recordings,
    max(species) as species,
    bool_or(is_simulated) as is_simulated
from counted
group by label_set, step
order by label_set, recordings
