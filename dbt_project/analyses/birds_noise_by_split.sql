-- Are the clips that a model is judged by as noisy as those that it learns from?
select
    label_set,
    split,
    count(*) as clips,
    count(distinct recordist) as recordists,
    count(distinct primary_species) as species,
    round(percentile_cont(0.1) within group (order by snr_db)::numeric, 1) as snr_db_10,
    round(percentile_cont(0.5) within group (order by snr_db)::numeric, 1) as snr_db_median,
    round(percentile_cont(0.9) within group (order by snr_db)::numeric, 1) as snr_db_90,
    bool_or(is_simulated) as is_simulated
from {{ ref('mart_birds_training_clips') }}
where snr_db is not null
group by label_set, split
order by label_set, array_position(array['train', 'valid', 'test'], split)
