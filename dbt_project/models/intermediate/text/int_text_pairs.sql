-- One row per sentence and its translation, English to other, with the reason why it may not be trained on, if any.
with catalogue_messages as (
    select
        'gettext_catalogues' as source,
        package as corpus,
        'messages' as part,
        row_number() over (
            partition by package, language order by source_text, context, form, target_text, path
        )::integer as line,
        'en' as source_tag,
        split_part(split_part(split_part(language, '_', 1), '-', 1), '@', 1) as target_tag,
        language like '%\_%' or language like '%-%' or language like '%@%' as is_regional,
        source_text as raw_source,
        -- a single & before a letter marks the key that opens a menu entry
        {{ tidy("regexp_replace(source_text, '(^|[^[:alnum:]])&([[:alnum:]])', '\\1\\2', 'g')") }} as source_text,
        {{ tidy("regexp_replace(target_text, '(^|[^[:alnum:]])&([[:alnum:]])', '\\1\\2', 'g')") }} as target_text,
        null as published_split,
        null as source_contributor,
        null as target_contributor,
        licence,
        fetched_at,
        jsonb_build_array(path, context, source_text, form)::text as record
    from {{ ref('stg_gettext_catalogues__messages') }}
),

parallel_lines as (
    select
        'parallel_files' as source,
        english.corpus,
        english.part,
        english.line,
        'en' as source_tag,
        other.language as target_tag,
        false as is_regional,
        english.text as raw_source,
        english.text as source_text,
        other.text as target_text,
        english.published_split,
        null as source_contributor,
        null as target_contributor,
        null as licence,
        greatest(english.fetched_at, other.fetched_at) as fetched_at,
        jsonb_build_array(english.corpus, english.part, other.language, english.line)::text as record
    from {{ ref('stg_parallel_files__lines') }} as english
    inner join {{ ref('stg_parallel_files__lines') }} as other
        on english.corpus = other.corpus and english.part = other.part and english.line = other.line
    where english.language in ('en', 'eng') and other.language not in ('en', 'eng')
),

links_with_english as (
    select
        sentence_id,
        translation_id,
        sentence_id as english_id,
        translation_id as other_id
    from {{ ref('stg_tatoeba__links') }}
    where language = 'eng'
    union all
    select
        sentence_id,
        translation_id,
        translation_id as english_id,
        sentence_id as other_id
    from {{ ref('stg_tatoeba__links') }}
    where translation_language = 'eng'
),

tatoeba_pairs as (
    select
        'tatoeba' as source,
        'tatoeba' as corpus,
        other.language as part,
        links.other_id::integer as line,
        'en' as source_tag,
        other.language as target_tag,
        false as is_regional,
        english.text as raw_source,
        english.text as source_text,
        other.text as target_text,
        null as published_split,
        english.contributor as source_contributor,
        other.contributor as target_contributor,
        -- what may be done with both is what may be done with the one that asks for more
        case when english.licence ~* 'cc0' then other.licence else english.licence end as licence,
        greatest(english.fetched_at, other.fetched_at) as fetched_at,
        jsonb_build_array(links.sentence_id, links.translation_id)::text as record
    from links_with_english as links
    inner join {{ ref('stg_tatoeba__sentences') }} as english
        on links.english_id = english.sentence_id and english.language = 'eng'
    inner join {{ ref('stg_tatoeba__sentences') }} as other on links.other_id = other.sentence_id
),

picked_pairs as (
    select
        'manythings' as source,
        'manythings' as corpus,
        language as part,
        translation_id::integer as line,
        'en' as source_tag,
        language as target_tag,
        false as is_regional,
        english as raw_source,
        english as source_text,
        translation as target_text,
        null as published_split,
        contributor as source_contributor,
        translator as target_contributor,
        licence,
        fetched_at,
        jsonb_build_array(language, sentence_id, translation_id)::text as record
    from {{ ref('stg_manythings__pairs') }}
),

pairs as (
    select * from catalogue_messages
    union all
    select * from parallel_lines
    union all
    select * from tatoeba_pairs
    union all
    select * from picked_pairs
),

tags as (
    select
        iso_639_3 as tag,
        coalesce(counts_as, iso_639_3) as language
    from {{ ref('languages') }}
    union all
    select
        iso_639_1 as tag,
        coalesce(counts_as, iso_639_3) as language
    from {{ ref('languages') }}
    where iso_639_1 is not null
),

known as (
    select
        pairs.*,
        'eng' as source_language,
        tags.language as target_language,
        {{ licence_code('coalesce(pairs.licence, corpora.licence)') }} as licence_code,
        {{ words('pairs.source_text') }} as source_words,
        {{ words('pairs.target_text') }} as target_words,
        {{ normalised_text('pairs.source_text') }} as normalised_source
    from pairs
    left join tags on pairs.target_tag = tags.tag
    left join {{ ref('text_corpora') }} as corpora on pairs.corpus = corpora.corpus
),

ranked as (
    select
        *,
        row_number() over (
            -- what manythings.org picked is in Tatoeba: there it counts
            partition by
                case source when 'manythings' then 'tatoeba' else source end,
                target_language, source_text, target_text
            order by is_regional, (source = 'manythings'), corpus, line, record
        ) as nth_copy
    from known
)

select
    {{ surrogate_key(['source', 'record']) }} as pair_id,
    source,
    corpus,
    {{ surrogate_key(['source', 'corpus']) }} as corpus_id,
    part,
    line,
    source_language,
    target_language,
    source_text,
    target_text,
    {{ surrogate_key(['source_language', 'source_text']) }} as source_sentence_id,
    {{ surrogate_key(['target_language', 'target_text']) }} as target_sentence_id,
    source_words,
    target_words,
    normalised_source,
    md5(coalesce(nullif(normalised_source, ''), source_text)) as group_key,
    published_split,
    source_contributor,
    target_contributor,
    licence_code,
    case
        when target_language is null then 'unknown_language'
        when source_text is null or target_text is null then 'empty'
        when published_split is not null then null
        when raw_source ~ '</?[[:alpha:]][^>]*>|&[[:alpha:]]+;|&#\d+;' then 'markup'
        when target_text ~ '</?[[:alpha:]][^>]*>' then 'markup'
        when source_text = target_text then 'untranslated'
        when source_words < 2 then 'too_short'
        when source_words > 100 then 'too_long'
        when source != 'parallel_files' and nth_copy > 1 then 'duplicate'
    end as ineligible_because,
    fetched_at
from ranked
