{{ config(unique_key='recorder_id') }}

select distinct
    {{ surrogate_key(['recorder']) }} as recorder_id,
    recorder as name
from {{ ref('stg_field_recorder__detections') }}
where recorder is not null
