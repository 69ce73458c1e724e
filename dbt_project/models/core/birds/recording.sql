{{ config(unique_key='recording_id') }}

select
    recording_id,
    source,
    recording_key,
    recordist_id,
    place_id,
    licence_code,
    label_set,
    is_labelled,
    subspecies,
    recorded_on,
    recorded_at,
    length_s,
    quality,
    sex,
    life_stage,
    method,
    background,
    snr_db,
    is_simulated,
    published_split,
    group_key,
    audio_sha256,
    page_url,
    remarks,
    fetched_at
from {{ ref('int_birds_recordings') }}
