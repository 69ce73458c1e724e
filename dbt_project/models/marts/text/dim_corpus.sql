-- depends_on: {{ ref('sweep_text') }}
select
    corpora.corpus_id,
    corpora.source,
    corpora.name,
    corpora.title,
    corpora.licence_code,
    licences.title as licence,
    licences.may_redistribute,
    count(links.pair_id) as pairs
from {{ ref('corpus') }} as corpora
inner join {{ ref('licence') }} as licences on corpora.licence_code = licences.licence_code
left join {{ ref('link') }} as links on corpora.corpus_id = links.corpus_id
group by
    corpora.corpus_id, corpora.source, corpora.name, corpora.title, corpora.licence_code,
    licences.title, licences.may_redistribute
