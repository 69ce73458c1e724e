-- depends_on: {{ ref('sweep_music') }}
select
    'music' as domain,
    piece_id as key,
    excluded_because as reason
from {{ ref('int_music_candidates') }}
where excluded_because is not null
