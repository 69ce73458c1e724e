select
    corpus,
    source_language,
    target_language,
    split,
    count(*) as pairs,
    count(distinct group_key) as leakage_groups,
    sum(source_words)::bigint as source_words,
    percentile_cont(0.5) within group (order by source_words) as median_source_words,
    percentile_cont(0.95) within group (order by source_words) as p95_source_words,
    max(source_words) as longest_source_words,
    avg(length(target_text)::numeric / length(source_text))::double precision as mean_length_ratio
from {{ ref('mart_translation_training_pairs') }}
group by corpus, source_language, target_language, split
