{{ config(unique_key='sound_type_id') }}

select
    {{ surrogate_key(['sound_type']) }} as sound_type_id,
    sound_type as name,
    kind,
    is_generic,
    description
from {{ ref('sound_types') }}
