with pieces as (
    {{ current_version('mutopia', 'pieces') }}
)

select
    piece_id,
    {{ tidy('title') }} as title,
    {{ tidy('composer') }} as composer,
    {{ tidy('instruments') }} as instruments,
    {{ tidy('style') }} as style,
    {{ tidy('opus') }} as opus,
    {{ tidy('metre') }} as metre,
    {{ tidy('lyricist') }} as lyricist,
    {{ tidy('arranger') }} as arranger,
    {{ tidy('composed') }} as composed,
    {{ tidy('edition') }} as edition,
    {{ tidy('licence') }} as licence,
    licence_url,
    updated as updated_on,
    music_id,
    {{ tidy('maintainer') }} as maintainer,
    midi_url,
    page_url,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from pieces
