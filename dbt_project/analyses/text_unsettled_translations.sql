-- Which English texts are translated most differently, and does the commonest translation win at least half?
-- (A text with a placeholder has a translation for each plural form: those are left out.)
with variants as (
    select
        target_language,
        source_text,
        target_text,
        count(*) as pairs
    from {{ ref('mart_translation_training_pairs') }}
    where source_words <= 3 and source_text !~ '[%{]'
    group by target_language, source_text, target_text
),

ranked as (
    select
        target_language,
        source_text,
        target_text,
        pairs,
        sum(pairs) over (partition by target_language, source_text) as all_pairs,
        count(*) over (partition by target_language, source_text) as variants,
        row_number() over (partition by target_language, source_text order by pairs desc, target_text asc) as place
    from variants
)

select
    target_language,
    source_text,
    variants,
    all_pairs as pairs,
    target_text as commonest,
    round(100.0 * pairs / all_pairs, 0) as percent_commonest,
    pairs * 2 >= all_pairs as is_settled
from ranked
where place = 1 and variants > 1
order by variants desc, all_pairs desc, target_language asc, source_text asc
limit 100
