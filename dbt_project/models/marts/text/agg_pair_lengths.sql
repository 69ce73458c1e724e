select
    corpus_id,
    source_language,
    target_language,
    least(source_words, 51) / 5 * 5 as source_words_from,
    count(*) as pairs,
    avg(target_words)::double precision as mean_target_words
from {{ ref('fct_sentence_pairs') }}
group by corpus_id, source_language, target_language, least(source_words, 51) / 5 * 5
