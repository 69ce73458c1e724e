-- Which music came more than once, in any key, and would have leaked from training into the test without groups?
with alike as (
    select
        fingerprint,
        count(*) as copies,
        count(distinct corpus) as collections,
        string_agg(distinct corpus, ', ' order by corpus) as found_in,
        min(title) as title
    from {{ ref('fct_pieces') }}
    group by fingerprint
    having count(*) > 1
),

trained as (
    select
        fingerprint,
        count(*) as in_training_mart,
        string_agg(distinct split, ', ' order by split) as splits
    from {{ ref('mart_music_training_pieces') }}
    group by fingerprint
)

select
    alike.title,
    alike.found_in,
    alike.copies,
    alike.collections,
    coalesce(trained.in_training_mart, 0) as in_training_mart,
    trained.splits,
    sum(alike.copies - 1) over () as copies_too_many
from alike
left join trained on alike.fingerprint = trained.fingerprint
order by alike.copies desc, alike.title asc, alike.found_in asc, trained.splits asc
