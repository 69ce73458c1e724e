-- How often do sources change or take back what they have said, and how long does a version hold?
with versions as (
    select
        'birds' as domain,
        source,
        version,
        valid_from,
        valid_to,
        is_current
    from {{ ref('dim_recording_history') }}
    union all
    select
        'music' as domain,
        source,
        version,
        valid_from,
        valid_to,
        is_current
    from {{ ref('dim_piece_history') }}
    union all
    select
        'text' as domain,
        'tatoeba' as source,
        version,
        valid_from,
        valid_to,
        is_current
    from {{ ref('dim_sentence_history') }}
),

counted as (
    select
        domain,
        source,
        count(*) filter (where version = 1) as records,
        count(*) filter (where version = 2) as changed,
        count(*) filter (where is_current) as there_now,
        max(version) as most_versions,
        percentile_cont(0.5) within group (order by valid_to - valid_from) filter (where not is_current) as held,
        max(valid_from) as last_change
    from versions
    group by domain, source
)

select
    domain,
    source,
    records,
    round(100.0 * changed / records, 1) as percent_changed,
    round(100.0 * (records - there_now) / records, 1) as percent_taken_back,
    most_versions,
    round((extract(epoch from held) / 86400)::numeric, 1) as median_days_a_version_held,
    last_change::date as last_change,
    rank() over (order by 1.0 * changed / records desc) as place,
    source = 'aviary' as is_simulated
from counted
order by domain asc, percent_changed desc, source asc
