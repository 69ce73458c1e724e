{#-
    Recordings of a source whose documents have the shape of the xeno-canto API, flattened; untidy values become null.
    Simulated sources say a few things more: family, order, background, snr_db, split, simulated.

    source_name: the source; its documents are the resource `recordings`
-#}
{% macro described_recordings(source_name) -%}
with documents as (
    {{ current_version(source_name, 'recordings') }}
)

select
    doc ->> 'id' as recording_key,
    -- what nobody could name, and soundscapes, have names that are no species
    nullif(nullif({{ tidy("doc ->> 'gen'") }}, 'Mystery'), 'Sonus') as genus,
    {{ epithet("doc ->> 'sp'") }} as epithet,
    {{ subspecies("doc ->> 'ssp'", "doc ->> 'sp'") }} as subspecies,
    {{ is_certain("concat(doc ->> 'sp', ' ', doc ->> 'ssp')") }} as is_name_certain,
    {{ tidy("doc ->> 'en'") }} as english_name,
    {{ tidy("doc ->> 'family'") }} as family,
    {{ tidy("doc ->> 'order'") }} as bird_order,
    {{ tidy("doc ->> 'rec'") }} as recordist,
    {{ tidy("doc ->> 'cnt'") }} as country,
    {{ tidy("doc ->> 'loc'") }} as locality,
    {{ degrees("doc ->> 'lat'", 90) }} as latitude,
    {{ degrees("doc ->> 'lon'", 180) }} as longitude,
    {{ metres("doc ->> 'alt'") }} as altitude_m,
    {{ tidy("lower(" ~ unscrambled("doc ->> 'type'") ~ ")") }} as sound_types,
    {{ tidy("lower(doc ->> 'sex')") }} as sex,
    {{ tidy("lower(doc ->> 'stage')") }} as life_stage,
    {{ tidy("lower(doc ->> 'method')") }} as method,
    case when doc ->> 'q' in ('A', 'B', 'C', 'D', 'E') then doc ->> 'q' end as quality,
    ({{ seconds("doc ->> 'length'") }})::double precision as length_s,
    case when {{ year_of("doc ->> 'date'") }} is not null then {{ try_cast("doc ->> 'date'", 'date') }} end as recorded_on,
    {{ year_of("doc ->> 'date'") }} as recorded_year,
    {{ month_of("doc ->> 'date'") }} as recorded_month,
    {{ time_of_day("doc ->> 'time'") }} as recorded_at,
    {{ time_precision("doc ->> 'time'") }} as recorded_at_precision,
    {{ part_of_day("doc ->> 'time'") }} as part_of_day,
    {{ try_cast("doc ->> 'uploaded'", 'date') }} as uploaded_on,
    {{ tidy("doc ->> 'lic'") }} as licence,
    {{ tidy("doc ->> 'url'") }} as page_url,
    {{ tidy("doc ->> 'rmk'") }} as remarks,
    case when jsonb_typeof(doc -> 'also') = 'array' then doc -> 'also' else '[]'::jsonb end as background_species,
    {{ tidy("doc ->> 'background'") }} as background,
    {{ try_cast("doc ->> 'snr_db'", 'double precision') }} as snr_db,
    {{ split_name("doc ->> 'split'") }} as published_split,
    coalesce({{ try_cast("doc ->> 'simulated'", 'boolean') }}, false) as is_simulated,
    {{ tidy("concat_ws(' ', doc ->> 'gen', doc ->> 'sp', doc ->> 'ssp')") }} as name_as_written,
    {{ tidy("doc ->> 'alt'") }} as altitude_as_written,
    {{ tidy("doc ->> 'length'") }} as length_as_written,
    {{ tidy("doc ->> 'date'") }} as date_as_written,
    {{ tidy("doc ->> 'time'") }} as time_as_written,
    {{ tidy("concat_ws(' ', doc ->> 'lat', doc ->> 'lon')") }} as position_as_written,
    {{ tidy("doc ->> 'q'") }} as quality_as_written,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from documents
{%- endmacro %}

{#-
    Audio files of such a source: one row per recording.

    source_name: the source; its files are the resource `audio`
-#}
{% macro recorded_files(source_name) -%}
with objects as (
    {{ current_version(source_name, 'audio') }}
)

select
    recording_id::text as recording_key,
    file_name,
    sha256,
    bytes::bigint as bytes,
    content_type,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from objects
{%- endmacro %}

{#-
    Every version of what such a source says of its recordings, for their history.

    source_name: the source; its documents are the resource `recordings`
-#}
{% macro described_versions(source_name) -%}
with documents as (
    {{ published_versions(source_name, 'recordings') }}
)

select
    _key::jsonb ->> 0 as recording_key,
    nullif(concat_ws(' ', {{ tidy("doc ->> 'gen'") }}, {{ epithet("doc ->> 'sp'") }}), '') as scientific_name,
    case when doc ->> 'q' in ('A', 'B', 'C', 'D', 'E') then doc ->> 'q' end as quality,
    {{ tidy("lower(" ~ unscrambled("doc ->> 'type'") ~ ")") }} as sound_types,
    {{ tidy("doc ->> 'rec'") }} as recordist,
    ({{ seconds("doc ->> 'length'") }})::double precision as length_s,
    {{ licence_code("doc ->> 'lic'") }} as licence_code,
    _load as load_number,
    _position as position,
    _deleted as is_deleted,
    _fetched_at as fetched_at
from documents
{%- endmacro %}
