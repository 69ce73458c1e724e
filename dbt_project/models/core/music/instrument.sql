{{ config(unique_key='instrument_id') }}

select distinct
    {{ surrogate_key(['instrument']) }} as instrument_id,
    instrument as name
from {{ ref('stg_notes__notes') }}
where instrument is not null
