with pieces as (
    {{ current_version('notes', 'pieces') }}
)

select
    piece_id,
    source,
    path,
    number::integer as number,
    corpus,
    {{ tidy('title') }} as title,
    {{ tidy('composer') }} as composer,
    {{ tidy('time_signature') }} as time_signature,
    {{ tidy('key_signature') }} as key_signature,
    tempo_bpm::double precision as tempo_bpm,
    parts::integer as parts,
    quarters::double precision as quarters,
    {{ tidy('fingerprint') }} as fingerprint,
    {{ tidy('licence') }} as licence,
    {{ split_name('split') }} as published_split,
    (frames_quarter::text)::jsonb as frames,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from pieces
