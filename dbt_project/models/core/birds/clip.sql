{{ config(unique_key='clip_id', indexes=[{'columns': ['recording_id']}]) }}

-- A clip whose recording is gone, or was cut from an earlier audio file of it, is no longer of this recording.
select
    clips.clip_id,
    recordings.recording_id,
    clips.start_s,
    clips.end_s,
    clips.sample_rate,
    clips.samples,
    clips.clip_object,
    clips.audio_sha256,
    clips.rms_db,
    clips.peak
from {{ ref('stg_clips__clips') }} as clips
inner join {{ ref('int_birds_recordings') }} as recordings
    on
        clips.source = recordings.source
        and clips.recording_key = recordings.recording_key
        and clips.audio_sha256 = coalesce(recordings.audio_sha256, clips.audio_sha256)
