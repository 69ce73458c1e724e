-- depends_on: {{ ref('sweep_birds') }}
select
    label_set,
    split,
    primary_species,
    count(*) as clips,
    count(distinct recording_id) as recordings,
    count(distinct group_key) as leakage_groups,
    (sum((end_s - start_s)::numeric))::double precision as seconds,
    (count(*)::double precision / sum(count(*)) over (partition by label_set, split))::double precision as share
from {{ ref('mart_birds_training_clips') }}
group by label_set, split, primary_species
