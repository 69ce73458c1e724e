-- Which notes does each collection like, and how evenly does it use the twelve of them?
with shares as (
    select
        corpus,
        pitch_class,
        quarters,
        quarters / sum(quarters) over (partition by corpus) as share
    from {{ ref('agg_pitch_classes') }}
    where quarters > 0
)

select
    corpus,
    pitch_class,
    (array['C', 'C sharp', 'D', 'E flat', 'E', 'F', 'F sharp', 'G', 'A flat', 'A', 'B flat', 'B'])[pitch_class + 1]
        as note,
    round(100 * share::numeric, 1) as percent_of_time,
    rank() over (partition by corpus order by share desc) as place,
    round((-sum(share * ln(share) / ln(2)) over (partition by corpus))::numeric, 2) as entropy_bits
from shares
order by corpus, pitch_class
