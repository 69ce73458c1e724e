-- One row per genus, with its family and order: as a source says, else as the seed says, else unknown.
with said as (
    select
        genus,
        min(family) as family
    from {{ ref('int_birds_species') }}
    group by genus
),

orders as (
    select
        family,
        min(bird_order) as bird_order
    from {{ ref('int_birds_species') }}
    where family is not null
    group by family
),

genera as (
    select
        said.genus,
        coalesce(said.family, seed.family, 'unknown') as family
    from said
    left join {{ ref('taxonomy') }} as seed on said.genus = seed.genus
),

seed_orders as (
    select
        family,
        min(bird_order) as bird_order
    from {{ ref('taxonomy') }}
    group by family
)

select
    genera.genus,
    genera.family,
    coalesce(orders.bird_order, seed_orders.bird_order, 'unknown') as bird_order
from genera
left join orders on genera.family = orders.family
left join seed_orders on genera.family = seed_orders.family
