-- What keeps rows of the three domains out of training, and which reasons account for most of it?
with rows_of_domains as (
    select
        'birds' as domain,
        'in training mart' as reason,
        is_simulated
    from {{ ref('mart_birds_training_clips') }}
    union all
    select
        'music' as domain,
        'in training mart' as reason,
        false as is_simulated
    from {{ ref('mart_music_training_pieces') }}
    union all
    select
        'text' as domain,
        'in training mart' as reason,
        false as is_simulated
    from {{ ref('mart_translation_training_pairs') }}
    union all
    select
        domain,
        reason,
        false as is_simulated
    from {{ ref('fct_birds_training_exclusions') }}
    union all
    select
        domain,
        reason,
        false as is_simulated
    from {{ ref('fct_music_training_exclusions') }}
    union all
    select
        domain,
        reason,
        false as is_simulated
    from {{ ref('fct_text_training_exclusions') }}
),

counted as (
    select
        domain,
        reason,
        count(*) as rows_counted,
        bool_or(is_simulated) as is_simulated
    from rows_of_domains
    group by domain, reason
)

select
    domain,
    reason,
    rows_counted,
    round(100.0 * rows_counted / sum(rows_counted) over (partition by domain), 1) as percent_of_domain,
    round(
        100.0 * sum(rows_counted) over (partition by domain order by rows_counted desc, reason asc)
        / sum(rows_counted) over (partition by domain), 1
    ) as percent_so_far,
    bool_or(is_simulated) over (partition by domain) as is_simulated
from counted
order by domain asc, rows_counted desc, reason asc
