-- One row per recording of every bird source, in one shape, with its surrogate keys and its leakage group.
with described as (
    select
        'aviary' as source,
        *
    from {{ ref('stg_aviary__recordings') }}
    union all
    select
        'xeno_canto' as source,
        *
    from {{ ref('stg_xeno_canto__recordings') }}
),

files as (
    select
        'aviary' as source,
        recording_key,
        sha256
    from {{ ref('stg_aviary__audio') }}
    union all
    select
        'xeno_canto' as source,
        recording_key,
        sha256
    from {{ ref('stg_xeno_canto__audio') }}
),

catalogues as (
    select
        described.source,
        described.recording_key,
        described.source as label_set,
        described.genus is not null and described.epithet is not null as is_labelled,
        described.genus,
        described.epithet,
        described.subspecies,
        described.is_name_certain,
        described.english_name,
        described.family,
        described.bird_order,
        described.recordist,
        described.country,
        described.locality,
        described.latitude,
        described.longitude,
        described.altitude_m,
        described.sound_types,
        described.sex,
        described.life_stage,
        described.method,
        described.quality,
        described.length_s,
        described.recorded_on,
        described.recorded_year,
        described.recorded_month,
        described.recorded_at,
        described.recorded_at_precision,
        described.part_of_day,
        described.licence,
        described.page_url,
        described.remarks,
        described.background_species,
        described.background,
        described.snr_db,
        described.published_split,
        described.is_simulated,
        files.sha256 as audio_sha256,
        described.fetched_at
    from described
    left join files on described.source = files.source and described.recording_key = files.recording_key
),

audio_folder as (
    select
        'audio_folder' as source,
        coalesce(labels.file, audio.file) as recording_key,
        coalesce(labels.label_set, 'audio_folder') as label_set,
        labels.file is not null as is_labelled,
        initcap(split_part(labels.scientific_name, ' ', 1)) as genus,
        lower(split_part(labels.scientific_name, ' ', 2)) as epithet,
        nullif(lower(split_part(labels.scientific_name, ' ', 3)), '') as subspecies,
        true as is_name_certain,
        labels.english_name,
        null as family,
        null as bird_order,
        labels.recordist,
        null as country,
        null as locality,
        null::double precision as latitude,
        null::double precision as longitude,
        null::double precision as altitude_m,
        null as sound_types,
        null as sex,
        null as life_stage,
        null as method,
        null as quality,
        null::double precision as length_s,
        null::date as recorded_on,
        null::integer as recorded_year,
        null::integer as recorded_month,
        null::time as recorded_at,
        null as recorded_at_precision,
        null as part_of_day,
        labels.licence,
        null as page_url,
        null as remarks,
        '[]'::jsonb as background_species,
        null as background,
        null::double precision as snr_db,
        labels.published_split,
        false as is_simulated,
        audio.sha256 as audio_sha256,
        coalesce(labels.fetched_at, audio.fetched_at) as fetched_at
    from {{ ref('stg_audio_folder__labels') }} as labels
    full outer join {{ ref('stg_audio_folder__audio') }} as audio on labels.file = audio.file
),

-- of an occurrence with a sound, GBIF tells who and where; the file itself stays where it is
gbif as (
    select
        'gbif_sounds' as source,
        occurrence_key::text as recording_key,
        'gbif_sounds' as label_set,
        scientific_name is not null as is_labelled,
        split_part(scientific_name, ' ', 1) as genus,
        split_part(scientific_name, ' ', 2) as epithet,
        null as subspecies,
        true as is_name_certain,
        null as english_name,
        family,
        bird_order,
        recordist,
        country_code as country,
        locality,
        latitude,
        longitude,
        null::double precision as altitude_m,
        null as sound_types,
        null as sex,
        null as life_stage,
        null as method,
        null as quality,
        null::double precision as length_s,
        recorded_on,
        extract(year from recorded_on)::integer as recorded_year,
        extract(month from recorded_on)::integer as recorded_month,
        null::time as recorded_at,
        null as recorded_at_precision,
        null as part_of_day,
        coalesce(sound_licence, licence) as licence,
        page_url,
        null as remarks,
        '[]'::jsonb as background_species,
        null as background,
        null::double precision as snr_db,
        null as published_split,
        false as is_simulated,
        null as audio_sha256,
        fetched_at
    from {{ ref('stg_gbif_sounds__occurrences') }}
),

recordings as (
    select * from catalogues
    union all
    select * from audio_folder
    union all
    select * from gbif
),

-- one person's name is written in several ways
named as (
    select
        *,
        {{ folded('recordist') }} as recordist_key
    from recordings
)

select
    {{ surrogate_key(['source', 'recording_key']) }} as recording_id,
    case when genus != '' and epithet != '' then genus || ' ' || epithet end as scientific_name,
    case when recordist_key is not null then {{ surrogate_key(['source', 'recordist_key']) }} end as recordist_id,
    case
        when coalesce(country, locality, latitude::text, longitude::text) is not null
            then {{ surrogate_key(['country', 'locality', 'latitude', 'longitude', 'altitude_m']) }}
    end as place_id,
    {{ licence_code('licence') }} as licence_code,
    source || '/' || coalesce('recordist/' || recordist_key, 'recording/' || recording_key) as group_key,
    *
from named
