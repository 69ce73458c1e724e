select
    model as model_name,
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
    rows as row_count,
    at as scored_at
from {{ source('ml', 'score') }}
