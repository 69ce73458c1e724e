-- How long are the pieces of each collection, and how far do their voices reach?
select
    corpus,
    count(*) as pieces,
    round(percentile_cont(0.1) within group (order by quarters)::numeric, 0) as quarters_10,
    round(percentile_cont(0.5) within group (order by quarters)::numeric, 0) as quarters_median,
    round(percentile_cont(0.9) within group (order by quarters)::numeric, 0) as quarters_90,
    round(avg(highest_pitch - lowest_pitch), 1) as mean_range_semitones,
    round(avg(notes / nullif(quarters, 0))::numeric, 2) as mean_notes_per_quarter
from {{ ref('fct_pieces') }}
where quarters > 0
group by corpus
order by pieces desc, corpus asc
