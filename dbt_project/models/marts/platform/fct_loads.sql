select
    source,
    load_number,
    resource,
    lane,
    slice,
    interval_start,
    interval_end,
    state,
    pages,
    record_count,
    version_count,
    quarantined_count,
    byte_count,
    quarantined_count::double precision
    / nullif(record_count + quarantined_count, 0) as quarantine_rate,
    extract(epoch from loaded_at - fetched_at)::double precision as seconds_to_load,
    -- of a slice of time: how long after its end its data was there
    extract(epoch from loaded_at - interval_end)::double precision as seconds_late,
    fetched_at,
    loaded_at,
    judged_at,
    reason,
    run_id
from {{ ref('stg_ops__loads') }}
