-- depends_on: {{ ref('sweep_text') }}
select
    links.pair_id,
    corpora.name as corpus,
    sources.language as source_language,
    targets.language as target_language,
    sources.text as source_text,
    targets.text as target_text,
    sources.words as source_words,
    candidates.group_key,
    candidates.cluster_key,
    candidates.split,
    candidates.split_origin,
    links.licence_code as licence,
    licences.may_redistribute,
    licences.may_use_commercially,
    licences.may_change
from {{ ref('int_text_candidates') }} as candidates
inner join {{ ref('link') }} as links on candidates.pair_id = links.pair_id
inner join {{ ref('corpus') }} as corpora on links.corpus_id = corpora.corpus_id
inner join {{ ref('sentence') }} as sources on links.source_sentence_id = sources.sentence_id
inner join {{ ref('sentence') }} as targets on links.target_sentence_id = targets.sentence_id
inner join {{ ref('licence') }} as licences on links.licence_code = licences.licence_code
where candidates.excluded_because is null
