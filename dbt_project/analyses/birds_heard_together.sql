-- Which two species are heard in one clip more often than chance would have them meet?
with totals as (
    select
        label_set,
        count(*) as clips
    from {{ ref('mart_birds_training_clips') }}
    group by label_set
),

alone as (
    select
        clips.label_set,
        species.name,
        count(*) as clips
    from {{ ref('mart_birds_training_clips') }} as clips
    cross join lateral unnest(clips.species) as species (name)
    group by clips.label_set, species.name
),

pairs as (
    select
        clips.label_set,
        one.name,
        other.name as other_name,
        count(*) as clips,
        bool_or(clips.is_simulated) as is_simulated
    from {{ ref('mart_birds_training_clips') }} as clips
    cross join lateral unnest(clips.species) as one (name)
    cross join lateral unnest(clips.species) as other (name)
    where cardinality(clips.species) > 1 and one.name < other.name
    group by clips.label_set, one.name, other.name
)

select
    pairs.label_set,
    pairs.name as species,
    pairs.other_name as heard_with,
    pairs.clips as clips_with_both,
    round(one.clips::numeric * other.clips / totals.clips, 1) as clips_by_chance,
    round(pairs.clips::numeric * totals.clips / (one.clips * other.clips), 2) as times_chance,
    pairs.is_simulated
from pairs
inner join totals on pairs.label_set = totals.label_set
inner join alone as one on pairs.label_set = one.label_set and pairs.name = one.name
inner join alone as other on pairs.label_set = other.label_set and pairs.other_name = other.name
order by times_chance desc, clips_with_both desc, species asc, heard_with asc
limit 50
