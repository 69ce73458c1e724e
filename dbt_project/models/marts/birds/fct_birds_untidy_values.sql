-- depends_on: {{ ref('sweep_birds') }}
select
    recordings.recording_id,
    recordings.source,
    recordings.recording_key,
    untidy.field,
    untidy.value,
    untidy.reason
from {{ ref('int_birds_untidy_values') }} as untidy
inner join {{ ref('recording') }} as recordings on untidy.recording_id = recordings.recording_id
