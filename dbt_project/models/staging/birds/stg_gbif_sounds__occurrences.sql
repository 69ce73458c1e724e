with documents as (
    {{ current_version('gbif_sounds', 'occurrences') }}
),

sounds as (
    select
        documents._key,
        count(*) as sounds,
        min(media.item ->> 'identifier') as sound_url,
        min(media.item ->> 'license') as sound_licence
    from documents
    cross join lateral jsonb_array_elements(documents.doc -> 'media') as media (item)
    where media.item ->> 'type' = 'Sound'
    group by documents._key
)

select
    (documents.doc ->> 'key')::bigint as occurrence_key,
    documents.doc ->> 'datasetKey' as dataset_key,
    {{ tidy("documents.doc ->> 'occurrenceID'") }} as publisher_id,
    {{ tidy("documents.doc ->> 'catalogNumber'") }} as catalogue_number,
    {{ tidy("documents.doc ->> 'scientificName'") }} as full_name,
    {{ tidy("documents.doc ->> 'species'") }} as scientific_name,
    {{ tidy("documents.doc ->> 'genus'") }} as genus,
    {{ tidy("documents.doc ->> 'family'") }} as family,
    {{ tidy("documents.doc ->> 'order'") }} as bird_order,
    {{ tidy("documents.doc ->> 'recordedBy'") }} as recordist,
    {{ tidy("documents.doc ->> 'rightsHolder'") }} as rights_holder,
    {{ tidy("documents.doc ->> 'license'") }} as licence,
    {{ tidy("documents.doc ->> 'countryCode'") }} as country_code,
    {{ tidy("documents.doc ->> 'locality'") }} as locality,
    {{ degrees("documents.doc ->> 'decimalLatitude'", 90) }} as latitude,
    {{ degrees("documents.doc ->> 'decimalLongitude'", 180) }} as longitude,
    {{ try_cast("left(documents.doc ->> 'eventDate', 10)", 'date') }} as recorded_on,
    {{ tidy("documents.doc ->> 'basisOfRecord'") }} as basis,
    coalesce(sounds.sounds, 0) as sounds,
    sounds.sound_url,
    sounds.sound_licence,
    {{ tidy("documents.doc ->> 'references'") }} as page_url,
    {{ try_cast("documents.doc ->> 'lastInterpreted'", 'timestamptz') }} as interpreted_at,
    documents._landing as landing_key,
    documents._load as load_number,
    documents._fetched_at as fetched_at
from documents
left join sounds on documents._key = sounds._key
