select
    quarantine_id,
    source,
    resource,
    load_number,
    position,
    reason,
    landing_key,
    run_id,
    quarantined_at,
    replayed_at
from {{ ref('stg_ops__quarantine') }}
