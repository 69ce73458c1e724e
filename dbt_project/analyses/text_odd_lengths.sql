-- Which corpora hold pairs whose lengths do not fit each other, as wrong alignments do?
-- (The ratios are read twice rather than kept: two parallel scans are faster than a million rows written aside.)
with ratios as not materialized (
    select
        corpus_id,
        target_language,
        training_status,
        ln(target_characters::double precision / source_characters) as log_ratio
    from {{ ref('fct_sentence_pairs') }}
    where source_characters > 0 and target_characters > 0 and source_words >= 3
),

usual as (
    select
        target_language,
        avg(log_ratio) as mean,
        stddev_samp(log_ratio) as deviation
    from ratios
    group by target_language
)

select
    corpora.title as corpus,
    ratios.target_language,
    count(*) as pairs,
    count(*) filter (where abs(ratios.log_ratio - usual.mean) > 3 * usual.deviation) as odd_pairs,
    round(
        100.0 * count(*) filter (where abs(ratios.log_ratio - usual.mean) > 3 * usual.deviation) / count(*), 2
    ) as percent_odd,
    count(*) filter (
        where abs(ratios.log_ratio - usual.mean) > 3 * usual.deviation and ratios.training_status = 'in training mart'
    ) as odd_pairs_trained_on,
    round(exp(avg(ratios.log_ratio))::numeric, 2) as typical_ratio
from ratios
inner join usual on ratios.target_language = usual.target_language
inner join {{ ref('dim_corpus') }} as corpora on ratios.corpus_id = corpora.corpus_id
group by corpora.title, ratios.target_language
order by percent_odd desc, pairs desc, corpus asc, ratios.target_language asc
