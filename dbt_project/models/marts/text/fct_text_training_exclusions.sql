-- depends_on: {{ ref('sweep_text') }}
select
    'text' as domain,
    pair_id as key,
    excluded_because as reason
from {{ ref('int_text_candidates') }}
where excluded_because is not null
