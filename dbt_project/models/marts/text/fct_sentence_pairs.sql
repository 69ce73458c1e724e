-- depends_on: {{ ref('sweep_text') }}
select
    links.pair_id,
    links.corpus_id,
    links.part,
    links.line,
    sources.language as source_language,
    targets.language as target_language,
    sources.words as source_words,
    targets.words as target_words,
    length(sources.text) as source_characters,
    length(targets.text) as target_characters,
    links.published_split,
    links.licence_code,
    coalesce(candidates.excluded_because, 'in training mart') as training_status,
    links.fetched_at
from {{ ref('link') }} as links
inner join {{ ref('sentence') }} as sources on links.source_sentence_id = sources.sentence_id
inner join {{ ref('sentence') }} as targets on links.target_sentence_id = targets.sentence_id
inner join {{ ref('int_text_candidates') }} as candidates on links.pair_id = candidates.pair_id
