{{ config(unique_key='pair_id') }}

select
    pair_id,
    corpus_id,
    {{ surrogate_key(["'corpus'", 'corpus_id']) }} as contributor_id,
    part,
    line,
    source_sentence_id,
    target_sentence_id,
    published_split,
    group_key,
    licence_code,
    fetched_at
from {{ ref('int_text_pairs') }}
where source_text is not null and target_text is not null and target_language is not null
