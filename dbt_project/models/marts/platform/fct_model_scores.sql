select
    model_name,
    model_version,
    dataset_version,
    split,
    metric,
    value,
    low,
    high,
    direction,
    baseline_name,
    baseline,
    baseline_low,
    baseline_high,
    case direction when 'more' then low > baseline_high else high < baseline_low end as beats_baseline,
    row_count,
    scored_at
from {{ ref('stg_ml__scores') }}
