select
    corpus,
    grid,
    split,
    count(*) as pieces,
    count(distinct group_key) as leakage_groups,
    sum(n_frames)::bigint as frames,
    min(n_frames) as shortest_frames,
    percentile_cont(0.5) within group (order by n_frames) as median_frames,
    max(n_frames) as longest_frames
from {{ ref('mart_music_training_pieces') }}
group by corpus, grid, split
