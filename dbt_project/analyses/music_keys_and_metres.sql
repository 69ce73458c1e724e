-- In which keys and metres are the pieces of each collection, and how many of them are in minor?
with named as (
    select
        corpus,
        key_signature,
        time_signature,
        key_signature like '% minor' as is_minor
    from {{ ref('fct_pieces') }}
    where key_signature is not null and time_signature is not null
),

counted as (
    select
        corpus,
        key_signature,
        count(*) as pieces,
        count(*) filter (where time_signature = '4/4') as pieces_in_four,
        bool_or(is_minor) as is_minor
    from named
    group by corpus, key_signature
)

select
    corpus,
    key_signature,
    pieces,
    round(100.0 * pieces / sum(pieces) over (partition by corpus), 1) as percent_of_corpus,
    round(100.0 * pieces_in_four / pieces, 1) as percent_in_four_four,
    round(
        100.0 * coalesce(sum(pieces) filter (where is_minor) over (partition by corpus), 0)
        / sum(pieces) over (partition by corpus), 1
    ) as percent_minor_in_corpus
from counted
order by corpus asc, pieces desc, key_signature asc
