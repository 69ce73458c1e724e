{{ config(unique_key='pair_id', indexes=[{'columns': ['source_sentence_id']}, {'columns': ['target_sentence_id']}]) }}

select
    pair_id,
    corpus_id,
    case
        when target_contributor is null then {{ surrogate_key(["'corpus'", 'corpus_id']) }}
        else {{ surrogate_key(["'member'", 'corpus_id', 'target_contributor']) }}
    end as contributor_id,
    case
        when source_contributor is null then {{ surrogate_key(["'corpus'", 'corpus_id']) }}
        else {{ surrogate_key(["'member'", 'corpus_id', 'source_contributor']) }}
    end as source_contributor_id,
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
