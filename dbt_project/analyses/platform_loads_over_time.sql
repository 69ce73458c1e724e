-- Does each load of a source still bring anything new, how long does it take, and how much of it is refused?
with numbered as (
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
)

select
    source,
    resource,
    max(loads_so_far) as loads,
    max(versions_so_far) as versions,
    round(100.0 * sum(version_count) filter (where loads_so_far > 1) / nullif(max(versions_so_far), 0), 1)
        as percent_after_first_load,
    round(100.0 * sum(quarantined_count) / nullif(sum(record_count + quarantined_count), 0), 2) as percent_refused,
    count(*) filter (where state = 'rejected') as loads_rejected,
    round(percentile_cont(0.5) within group (order by seconds_to_load)::numeric, 1) as median_seconds_to_load,
    round(max(seconds_to_load)::numeric, 1) as slowest_seconds,
    round((extract(epoch from avg(pause)) / 3600)::numeric, 1) as mean_hours_between,
    source = 'aviary'
    or (source = 'clips' and exists (select 1 from {{ ref('mart_birds_training_clips') }} where is_simulated))
        as is_simulated
from numbered
group by source, resource
order by versions desc nulls last, source asc, resource asc
