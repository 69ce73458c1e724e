with documents as (
    {{ current_version('aviary', 'recordings') }}
)

select
    doc ->> 'id' as recording_key,
    {{ tidy("doc ->> 'gen'") }} as genus,
    {{ tidy("doc ->> 'sp'") }} as epithet,
    {{ tidy("doc ->> 'ssp'") }} as subspecies,
    {{ tidy("doc ->> 'en'") }} as english_name,
    {{ tidy("doc ->> 'family'") }} as family,
    {{ tidy("doc ->> 'order'") }} as bird_order,
    {{ tidy("doc ->> 'rec'") }} as recordist,
    {{ tidy("doc ->> 'cnt'") }} as country,
    {{ tidy("doc ->> 'loc'") }} as locality,
    {{ try_cast("doc ->> 'lat'", 'double precision') }} as latitude,
    {{ try_cast("doc ->> 'lon'", 'double precision') }} as longitude,
    {{ try_cast("doc ->> 'alt'", 'double precision') }} as altitude_m,
    {{ tidy("lower(doc ->> 'type')") }} as sound_types,
    {{ tidy("lower(doc ->> 'sex')") }} as sex,
    {{ tidy("lower(doc ->> 'stage')") }} as life_stage,
    {{ tidy("lower(doc ->> 'method')") }} as method,
    case when doc ->> 'q' in ('A', 'B', 'C', 'D', 'E') then doc ->> 'q' end as quality,
    ({{ seconds("doc ->> 'length'") }})::double precision as length_s,
    {{ try_cast("doc ->> 'date'", 'date') }} as recorded_on,
    {{ try_cast("doc ->> 'time'", 'time') }} as recorded_at,
    {{ try_cast("doc ->> 'uploaded'", 'date') }} as uploaded_on,
    {{ tidy("doc ->> 'lic'") }} as licence,
    {{ tidy("doc ->> 'url'") }} as page_url,
    {{ tidy("doc ->> 'rmk'") }} as remarks,
    case when jsonb_typeof(doc -> 'also') = 'array' then doc -> 'also' else '[]'::jsonb end as background_species,
    {{ tidy("doc ->> 'background'") }} as background,
    {{ try_cast("doc ->> 'snr_db'", 'double precision') }} as snr_db,
    {{ split_name("doc ->> 'split'") }} as published_split,
    coalesce({{ try_cast("doc ->> 'simulated'", 'boolean') }}, false) as is_simulated,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from documents
