with lines as (
    {{ current_version('parallel_files', 'lines') }}
)

select
    corpus,
    part,
    {{ split_name('split') }} as published_split,
    language,
    line::integer as line,
    {{ tidy('text') }} as text,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from lines
