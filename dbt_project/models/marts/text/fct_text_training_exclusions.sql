-- depends_on: {{ ref('sweep_text') }}
with excluded_pairs as (
    select
        pair_id as key,
        excluded_because as reason
    from {{ ref('int_text_candidates') }}
    where excluded_because is not null
),

lines as (
    select
        corpus,
        part,
        language,
        line,
        language in ('en', 'eng') as is_english
    from {{ ref('stg_parallel_files__lines') }}
),

lines_alone as (
    select
        concat_ws('/', 'parallel_files', lines.corpus, lines.part, lines.language, lines.line) as key,
        'no_partner' as reason
    from lines
    where
        not exists (
            select 1
            from lines as partners
            where
                partners.corpus = lines.corpus
                and partners.part = lines.part
                and partners.line = lines.line
                and partners.is_english != lines.is_english
        )
),

-- as int_text_pairs takes them: linked, both there, one of them English
linked as (
    select
        links.sentence_id,
        links.translation_id
    from {{ ref('stg_tatoeba__links') }} as links
    inner join {{ ref('stg_tatoeba__sentences') }} as sentences on links.sentence_id = sentences.sentence_id
    inner join {{ ref('stg_tatoeba__sentences') }} as translations on links.translation_id = translations.sentence_id
    where 'eng' in (sentences.language, translations.language)
),

paired as (
    select sentence_id from linked
    union
    select translation_id as sentence_id from linked
),

sentences_alone as (
    select
        'tatoeba/' || sentences.sentence_id as key,
        'no_partner' as reason
    from {{ ref('stg_tatoeba__sentences') }} as sentences
    left join paired on sentences.sentence_id = paired.sentence_id
    where paired.sentence_id is null
),

excluded as (
    select * from excluded_pairs
    union all
    select * from lines_alone
    union all
    select * from sentences_alone
)

select
    'text' as domain,
    excluded.key,
    excluded.reason
from excluded
