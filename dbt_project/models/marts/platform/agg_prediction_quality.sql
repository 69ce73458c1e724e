select
    model_name,
    model_version,
    dataset_version,
    count(*) as predictions,
    avg(score::numeric)::double precision as mean_score,
    min(score) as lowest_score,
    max(score) as highest_score,
    min(predicted_at) as first_predicted_at,
    max(predicted_at) as last_predicted_at
from {{ ref('stg_ml__predictions') }}
group by model_name, model_version, dataset_version
