{{ config(unique_key='detection_id', indexes=[{'columns': ['species_id']}]) }}

select
    detection_id,
    revision,
    case when recorder is not null then {{ surrogate_key(['recorder']) }} end as recorder_id,
    case
        when {{ species_of('scientific_name') }} is not null
            then {{ surrogate_key([species_of('scientific_name')]) }}
    end as species_id,
    detected_at,
    confidence,
    start_s,
    end_s,
    clip_id as field_clip_id,
    latitude,
    longitude,
    fetched_at
from {{ ref('stg_field_recorder__detections') }}
