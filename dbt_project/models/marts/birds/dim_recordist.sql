-- depends_on: {{ ref('sweep_birds') }}
select
    recordists.recordist_id,
    recordists.source,
    recordists.name,
    count(recordings.recording_id) as recordings,
    min(recordings.recorded_on) as first_recorded_on,
    max(recordings.recorded_on) as last_recorded_on
from {{ ref('recordist') }} as recordists
left join {{ ref('recording') }} as recordings on recordists.recordist_id = recordings.recordist_id
group by recordists.recordist_id, recordists.source, recordists.name
