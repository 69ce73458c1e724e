-- depends_on: {{ ref('sweep_birds') }}
select
    recording_id,
    species_id,
    role,
    -- so that a sum over species counts each recording once
    1.0::double precision / count(*) over (partition by recording_id) as weight
from {{ ref('recording_species') }}
