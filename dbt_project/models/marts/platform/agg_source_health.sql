select
    source,
    resource,
    count(*) as loads,
    count(*) filter (where state = 'published') as published_loads,
    count(*) filter (where state = 'rejected') as rejected_loads,
    sum(record_count)::bigint as records,
    sum(byte_count)::bigint as bytes,
    sum(quarantined_count)::bigint as quarantined,
    sum(quarantined_count)::double precision
    / nullif(sum(record_count + quarantined_count), 0) as quarantine_rate,
    percentile_cont(0.5) within group (order by seconds_to_load) as median_seconds_to_load,
    max(seconds_late) as longest_seconds_late,
    max(loaded_at) filter (where state = 'published') as last_published_at
from {{ ref('fct_loads') }}
group by source, resource
