{{ config(unique_key='sentence_id') }}

with sides as (
    select
        source_sentence_id as sentence_id,
        source_language as language,
        source_text as text,
        source_words as words
    from {{ ref('int_text_pairs') }}
    where source_text is not null and target_text is not null and target_language is not null
    union all
    select
        target_sentence_id,
        target_language,
        target_text,
        target_words
    from {{ ref('int_text_pairs') }}
    where source_text is not null and target_text is not null and target_language is not null
)

select distinct
    sentence_id,
    language,
    text,
    words
from sides
