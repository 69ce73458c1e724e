with documents as (
    {{ current_version('species_accounts', 'species_accounts') }}
),

ranks as (
    select
        documents._key,
        max(taxon.item ->> 'name') filter (where taxon.item ->> 'rank' = 'order') as bird_order,
        max(taxon.item ->> 'name') filter (where taxon.item ->> 'rank' = 'family') as family,
        max(taxon.item ->> 'name') filter (where taxon.item ->> 'rank' = 'genus') as genus
    from documents
    cross join lateral jsonb_array_elements(documents.doc -> 'taxonomy') as taxon (item)
    group by documents._key
)

select
    documents.doc ->> 'species' as scientific_name,
    {{ tidy("documents.doc ->> 'title'") }} as title,
    {{ tidy("documents.doc ->> 'binomial'") }} as accepted_name,
    {{ tidy("documents.doc ->> 'authority'") }} as authority,
    ranks.bird_order,
    ranks.family,
    ranks.genus,
    {{ tidy("documents.doc ->> 'conservation_status'") }} as conservation_status,
    documents.doc ->> 'lead' as lead_text,
    jsonb_array_length(coalesce(documents.doc -> 'sections', '[]'::jsonb)) as sections,
    {{ tidy("documents.doc ->> 'licence'") }} as licence,
    documents.doc ->> 'licence_url' as licence_url,
    documents.doc ->> 'attribution' as attribution,
    documents.doc ->> 'url' as page_url,
    (documents.doc ->> 'revision')::bigint as revision,
    {{ try_cast("documents.doc ->> 'modified'", 'date') }} as modified_on,
    documents._landing as landing_key,
    documents._load as load_number,
    documents._fetched_at as fetched_at
from documents
left join ranks on documents._key = ranks._key
