-- depends_on: {{ ref('sweep_music') }}
select
    pieces.piece_id,
    pieces.source,
    pieces.corpus,
    works.title,
    composers.name as composer,
    rolls.grid,
    rolls.frames,
    rolls.n_frames,
    pieces.fingerprint,
    candidates.group_key,
    candidates.split,
    candidates.split_origin,
    pieces.licence_code as licence,
    licences.may_redistribute,
    licences.may_use_commercially,
    licences.may_change
from {{ ref('int_music_candidates') }} as candidates
inner join {{ ref('piece') }} as pieces on candidates.piece_id = pieces.piece_id
inner join {{ ref('piece_roll') }} as rolls
    on candidates.piece_id = rolls.piece_id and candidates.grid = rolls.grid
inner join {{ ref('work') }} as works on pieces.work_id = works.work_id
left join {{ ref('composer') }} as composers on works.composer_id = composers.composer_id
inner join {{ ref('licence') }} as licences on pieces.licence_code = licences.licence_code
where candidates.excluded_because is null
