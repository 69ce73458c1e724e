{{ config(materialized='ephemeral') }}

-- Every clip of a known recording, with its split and the reason why it may not be trained on, if any.
with clips as (
    select
        clips.clip_id,
        recordings.recording_id,
        recordings.label_set as publisher,
        recordings.group_key,
        recordings.published_split,
        groups.split as recorded_split,
        {{ resolved_split('recordings.published_split', 'groups.split') }} as split,
        case
            when not recordings.is_labelled then 'no_label'
            when {{ resolved_split('recordings.published_split', 'groups.split') }} is null then 'no_split'
        end as ineligible_because
    from {{ ref('clip') }} as clips
    inner join {{ ref('recording') }} as recordings on clips.recording_id = recordings.recording_id
    left join {{ source('ml', 'split_group') }} as groups
        on groups.domain = 'birds' and recordings.group_key = groups.group_key
),

judged as (
    select
        *,
        ineligible_because is null as eligible
    from clips
)

select
    clip_id,
    recording_id,
    group_key,
    split,
    case when published_split is null then 'assigned' else 'published' end as split_origin,
    coalesce(ineligible_because, case when {{ bridges_splits() }} then 'bridges_splits' end) as excluded_because
from judged
