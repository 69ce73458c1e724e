with pieces as (
    {{ current_version('piano_roll_files', 'pieces') }}
)

select
    piece_id,
    file,
    {{ split_name('split') }} as published_split,
    number::integer as number,
    grid,
    (frames::text)::jsonb as frames,
    {{ tidy('fingerprint') }} as fingerprint,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from pieces
