{{ config(unique_key='contributor_id') }}

-- Who gave a sentence, as far as the source tells; for the others, and where nobody is named, all of a corpus as one.
with named as (
    select
        corpus_id,
        source_contributor as name
    from {{ ref('int_text_pairs') }}
    where source_contributor is not null
    union
    select
        corpus_id,
        target_contributor
    from {{ ref('int_text_pairs') }}
    where target_contributor is not null
)

select
    {{ surrogate_key(["'member'", 'corpus_id', 'name']) }} as contributor_id,
    corpus_id,
    name
from named
union all
select distinct
    {{ surrogate_key(["'corpus'", 'corpus_id']) }} as contributor_id,
    corpus_id,
    'contributors of ' || corpus as name
from {{ ref('int_text_pairs') }}
