-- Which models beat their baseline by more than chance on held-out rows, and what did each version gain on the last?
select
    model_name,
    model_version,
    split,
    metric,
    round(value::numeric, 3) as value,
    round(low::numeric, 3) as low,
    round(high::numeric, 3) as high,
    round(baseline::numeric, 3) as baseline,
    beats_baseline,
    round(
        (
            (value - lag(value) over (partition by model_name, split, metric order by model_version))
            * case direction when 'more' then 1 else -1 end
        )::numeric, 3
    ) as better_than_version_before,
    row_count as rows_scored,
    model_name like '%aviary%' as is_simulated
from {{ ref('fct_model_scores') }}
order by model_name, metric, array_position(array['train', 'valid', 'test'], split), model_version
