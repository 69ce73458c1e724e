{{ config(unique_key='recording_id', indexes=[{'columns': ['recordist_id']}, {'columns': ['place_id']}]) }}

-- sex and age are at times written under "type"
with said as (
    select
        recording_id,
        string_agg(distinct value, ', ') filter (where field = 'sex') as sex,
        string_agg(distinct value, ', ') filter (where field = 'life_stage') as life_stage
    from {{ ref('int_birds_sound_types') }}
    where field in ('sex', 'life_stage')
    group by recording_id
)

select
    recordings.recording_id,
    recordings.source,
    recordings.recording_key,
    recordings.recordist_id,
    recordings.place_id,
    recordings.licence_code,
    recordings.label_set,
    recordings.is_labelled,
    recordings.subspecies,
    recordings.is_name_certain,
    recordings.recorded_on,
    -- of a date without a day, what is known
    case when recordings.recorded_on is null then recordings.recorded_year end as recorded_year,
    case when recordings.recorded_on is null then recordings.recorded_month end as recorded_month,
    recordings.recorded_at,
    recordings.recorded_at_precision,
    case when recordings.recorded_at is null then recordings.part_of_day end as part_of_day,
    recordings.length_s,
    recordings.quality,
    coalesce(recordings.sex, said.sex) as sex,
    coalesce(recordings.life_stage, said.life_stage) as life_stage,
    recordings.method,
    recordings.background,
    recordings.snr_db,
    recordings.is_simulated,
    recordings.published_split,
    recordings.group_key,
    recordings.audio_sha256,
    recordings.page_url,
    recordings.remarks,
    recordings.fetched_at
from {{ ref('int_birds_recordings') }} as recordings
left join said on recordings.recording_id = said.recording_id
