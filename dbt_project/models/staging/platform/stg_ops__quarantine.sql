select
    id as quarantine_id,
    source,
    resource,
    load as load_number,
    position,
    reason,
    landing as landing_key,
    run_id,
    at as quarantined_at,
    replayed_at
from {{ source('ops', 'quarantine') }}
