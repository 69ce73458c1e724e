{{ config(unique_key='contributor_id') }}

-- Who gave a sentence, as far as the source tells: the sources so far name only the corpus it came in.
select distinct
    {{ surrogate_key(["'corpus'", 'corpus_id']) }} as contributor_id,
    corpus_id,
    'contributors of ' || corpus as name
from {{ ref('int_text_pairs') }}
