-- What recordists write under "type", word by word: kinds of sound, in several languages, several at once, and at
-- times sex and age. One row per recording, field and value; what no word of the seed is in is a row without a value.
with writings as (
    select distinct sound_types
    from {{ ref('int_birds_recordings') }}
    where sound_types is not null
),

parts as (
    select
        writings.sound_types,
        trim(part.text, ' .') as part,
        trim({{ plain_letters('part.text') }}, ' .') as plain
    from writings
    cross join lateral regexp_split_to_table(writings.sound_types, '\s*[,;/|]+\s*') as part (text)
    where trim(part.text, ' .') != ''
),

matches as (
    select distinct
        parts.sound_types,
        parts.part,
        words.field,
        words.value,
        kinds.kind,
        kinds.is_generic
    from parts
    left join {{ ref('sound_words') }} as words on parts.plain ~ words.pattern
    left join {{ ref('sound_types') }} as kinds on words.field = 'sound_type' and words.value = kinds.sound_type
),

-- an alarm call is a call, and need not be told twice
meant as (
    select *
    from matches
    where
        is_generic is distinct from true
        or not exists (
            select 1
            from matches as closer
            where
                matches.sound_types = closer.sound_types
                and matches.part = closer.part
                and matches.kind = closer.kind
                and not closer.is_generic
        )
),

judged as (
    select
        sound_types,
        coalesce(field, 'unknown') as field,
        value,
        bool_or({{ is_certain('part') }}) as is_certain,
        min(part) as part
    from meant
    -- where a kind of sound is named, a word of something else in the same part only describes it
    where
        field = 'sound_type'
        or not exists (
            select 1
            from meant as named
            where meant.sound_types = named.sound_types and meant.part = named.part and named.field = 'sound_type'
        )
    group by sound_types, coalesce(field, 'unknown'), value, case when field = 'sound_type' then '' else part end
)

select
    recordings.recording_id,
    judged.field,
    judged.value,
    judged.is_certain,
    judged.part
from {{ ref('int_birds_recordings') }} as recordings
inner join judged on recordings.sound_types = judged.sound_types
