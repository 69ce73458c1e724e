{{ config(unique_key='corpus_id') }}

select distinct on (pairs.corpus_id)
    pairs.corpus_id,
    pairs.source,
    pairs.corpus as name,
    coalesce(seed.title, pairs.corpus) as title,
    pairs.licence_code
from {{ ref('int_text_pairs') }} as pairs
left join {{ ref('text_corpora') }} as seed on pairs.corpus = seed.corpus
order by pairs.corpus_id, pairs.licence_code
