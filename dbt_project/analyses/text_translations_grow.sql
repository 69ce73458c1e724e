-- How much longer than the English sentence is its translation, in each language and at each length?
with lengths as (
    select
        target_language,
        source_words_from,
        sum(pairs) as pairs,
        sum(pairs * mean_target_words) / sum(pairs) as mean_target_words
    from {{ ref('agg_pair_lengths') }}
    where source_language = 'eng'
    group by target_language, source_words_from
    having sum(pairs) >= 5
)

select
    target_language,
    source_words_from,
    pairs,
    round(mean_target_words::numeric, 1) as mean_target_words,
    round((mean_target_words - lag(mean_target_words) over by_language)::numeric, 1) as more_than_step_before,
    round(100.0 * pairs / sum(pairs) over (partition by target_language), 1) as percent_of_pairs
from lengths
window by_language as (partition by target_language order by source_words_from)
order by target_language, source_words_from
