select
    model as model_name,
    model_version,
    dataset_version,
    key as row_key,
    output,
    score,
    predicted_at
from {{ source('ml', 'prediction') }}
