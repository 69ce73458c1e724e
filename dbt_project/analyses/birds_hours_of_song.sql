-- At which hours are the birds of each order recorded, and how much of a day's song is heard before nine?
with hourly as (
    select
        species.bird_order,
        recordings.is_simulated,
        extract(hour from recordings.recorded_at)::integer as hour,
        count(*) as recordings
    from {{ ref('fct_recordings') }} as recordings
    inner join {{ ref('dim_species') }} as species on recordings.species_id = species.species_id
    where recordings.recorded_at is not null
    group by species.bird_order, recordings.is_simulated, extract(hour from recordings.recorded_at)
)

select
    bird_order,
    hour,
    recordings,
    round(100.0 * recordings / sum(recordings) over by_order, 1) as percent_of_order,
    round(
        100.0 * coalesce(sum(recordings) filter (where hour < 9) over by_order, 0) / sum(recordings) over by_order, 1
    ) as percent_before_nine,
    is_simulated
from hourly
window by_order as (partition by bird_order, is_simulated)
order by bird_order, hour
