{{ config(unique_key='licence_code') }}

select
    licence_code,
    title,
    url,
    may_redistribute,
    may_use_commercially,
    may_change
from {{ ref('licences') }}
