-- depends_on: {{ ref('sweep_music') }}
select
    composers.composer_id,
    composers.name,
    count(distinct works.work_id) as works,
    count(pieces.piece_id) as pieces
from {{ ref('composer') }} as composers
left join {{ ref('work') }} as works on composers.composer_id = works.composer_id
left join {{ ref('piece') }} as pieces on works.work_id = pieces.work_id
group by composers.composer_id, composers.name
