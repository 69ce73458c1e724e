-- depends_on: {{ ref('sweep_birds') }}
with excluded_clips as (
    select
        clip_id as key,
        excluded_because as reason
    from {{ ref('int_birds_candidates') }}
    where excluded_because is not null
),

orphan_clips as (
    select
        staged.clip_id as key,
        'no_recording' as reason
    from {{ ref('stg_clips__clips') }} as staged
    left join {{ ref('clip') }} as clips on staged.clip_id = clips.clip_id
    where clips.clip_id is null
),

recordings_without_clips as (
    select
        recordings.recording_id as key,
        'no_clip' as reason
    from {{ ref('recording') }} as recordings
    left join {{ ref('clip') }} as clips on recordings.recording_id = clips.recording_id
    where clips.clip_id is null
),

excluded as (
    select * from excluded_clips
    union all
    select * from orphan_clips
    union all
    select * from recordings_without_clips
)

select
    'birds' as domain,
    excluded.key,
    excluded.reason
from excluded
