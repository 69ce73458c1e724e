-- Does each load of a source still bring anything new, how long does it take, and how much of it is refused?
with loads as (
    select
        source,
        resource,
        state,
        fetched_at,
        version_count,
        quarantined_count,
        record_count,
        seconds_to_load,
        sum(version_count) over earlier as versions_so_far,
        row_number() over earlier as loads_so_far,
        fetched_at - lag(fetched_at) over earlier as pause
    from {{ ref('fct_loads') }}
    window earlier as (partition by source, resource order by load_number)
),

simulated as (
    select coalesce(bool_or(is_simulated), false) as clips
    from {{ ref('mart_birds_training_clips') }}
)

select
    loads.source,
    loads.resource,
    max(loads.loads_so_far) as loads,
    max(loads.versions_so_far) as versions,
    round(
        100.0 * sum(loads.version_count) filter (where loads.loads_so_far > 1)
        / nullif(max(loads.versions_so_far), 0), 1
    ) as percent_after_first_load,
    round(
        100.0 * sum(loads.quarantined_count)
        / nullif(sum(loads.record_count + loads.quarantined_count), 0), 2
    ) as percent_refused,
    count(*) filter (where loads.state = 'rejected') as loads_rejected,
    round(percentile_cont(0.5) within group (order by loads.seconds_to_load)::numeric, 1) as median_seconds_to_load,
    round(max(loads.seconds_to_load)::numeric, 1) as slowest_seconds,
    round((extract(epoch from avg(loads.pause)) / 3600)::numeric, 1) as mean_hours_between,
    loads.source = 'aviary' or (loads.source = 'clips' and simulated.clips) as is_simulated
from loads
cross join simulated
group by loads.source, loads.resource, simulated.clips
order by versions desc nulls last, loads.source asc, loads.resource asc
