{{ config(unique_key='edition_id') }}

select distinct
    edition_id,
    instruments,
    style,
    opus,
    lyricist,
    arranger,
    composed,
    typeset_from,
    maintainer,
    updated_on,
    page_url
from {{ ref('int_music_scores') }}
where edition_id is not null
