select
    recordings.source,
    species.species_id,
    species.scientific_name,
    count(*) as recordings,
    count(distinct recordings.recordist_id) as recordists,
    (sum(coalesce(recordings.length_s, 0)::numeric) / 60)::double precision as minutes
from {{ ref('fct_recordings') }} as recordings
inner join {{ ref('dim_species') }} as species on recordings.species_id = species.species_id
group by recordings.source, species.species_id, species.scientific_name
