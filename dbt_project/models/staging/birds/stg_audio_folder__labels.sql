with labels as (
    {{ current_version('audio_folder', 'labels') }}
)

select
    file,
    {{ tidy('scientific_name') }} as scientific_name,
    {{ tidy('english_name') }} as english_name,
    {{ tidy('recordist') }} as recordist,
    {{ split_name('split') }} as published_split,
    {{ tidy('licence') }} as licence,
    {{ tidy('label_set') }} as label_set,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from labels
