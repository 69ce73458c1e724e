{{ config(unique_key='sound_type_id') }}

select distinct
    {{ surrogate_key(['trim(said.name)']) }} as sound_type_id,
    trim(said.name) as name
from {{ ref('int_birds_recordings') }} as recordings
cross join lateral unnest(string_to_array(recordings.sound_types, ',')) as said (name)
where trim(said.name) != ''
