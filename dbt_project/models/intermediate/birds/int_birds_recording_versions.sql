{{ config(materialized='view') }}

-- Every version of the recordings of catalogues, of all sources.
select
    'aviary' as source,
    *
from {{ ref('stg_aviary__recording_versions') }}
union all
select
    'xeno_canto' as source,
    *
from {{ ref('stg_xeno_canto__recording_versions') }}
