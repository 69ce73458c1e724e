-- depends_on: {{ ref('sweep_birds') }}
select
    detections.detection_id,
    recorders.name as recorder,
    detections.species_id,
    detections.detected_at,
    detections.confidence,
    detections.start_s,
    detections.end_s,
    detections.field_clip_id,
    detections.latitude,
    detections.longitude
from {{ ref('detection') }} as detections
left join {{ ref('recorder') }} as recorders on detections.recorder_id = recorders.recorder_id
