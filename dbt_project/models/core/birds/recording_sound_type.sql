{{ config(unique_key=['recording_id', 'sound_type_id']) }}

select
    recording_id,
    {{ surrogate_key(['value']) }} as sound_type_id,
    is_certain
from {{ ref('int_birds_sound_types') }}
where field = 'sound_type'
