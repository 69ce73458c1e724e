-- What catalogues say of their recordings and we could not read, value by value, and why.
with described as (
    select
        'aviary' as source,
        *
    from {{ ref('stg_aviary__recordings') }}
    union all
    select
        'xeno_canto' as source,
        *
    from {{ ref('stg_xeno_canto__recordings') }}
),

readings as (
    select
        described.source,
        described.recording_key,
        reading.field,
        reading.value,
        reading.is_read,
        reading.reason
    from described
    cross join
        lateral (
            values
            (
                'species', described.name_as_written, described.genus is not null and described.epithet is not null,
                case
                    when described.name_as_written ~* '(^|\s)(x|×)(\s|$)' then 'a hybrid'
                    when described.genus is null then 'no genus'
                    else 'no species'
                end
            ),
            (
                'subspecies', described.name_as_written,
                described.subspecies is not null or described.name_as_written !~ '/',
                'several subspecies'
            ),
            (
                'subspecies',
                described.name_as_written,
                described.is_name_certain or described.epithet is null,
                'not certain'
            ),
            (
                'date', described.date_as_written, described.recorded_on is not null,
                case
                    when described.recorded_month is not null and described.date_as_written like '%-00'
                        then 'the month is known, not the day'
                    when described.recorded_year is not null and described.date_as_written like '%-00-00'
                        then 'the year is known, not the day'
                    else 'no such day'
                end
            ),
            (
                'time', described.time_as_written, described.recorded_at is not null,
                case when described.part_of_day is not null then 'the part of the day is known, not the time' end
            ),
            ('length', described.length_as_written, described.length_s is not null, null),
            ('altitude', described.altitude_as_written, described.altitude_m is not null, null),
            (
                'position', described.position_as_written,
                described.latitude is not null and described.longitude is not null, null
            ),
            ('quality', described.quality_as_written, described.quality is not null, null)
        ) as reading (field, value, is_read, reason)
    where reading.value is not null
),

unread as (
    select
        {{ surrogate_key(['source', 'recording_key']) }} as recording_id,
        field,
        value,
        case
            when {{ says_nothing('value') }} then 'says nothing'
            else coalesce(reason, 'cannot be read')
        end as reason
    from readings
    where not is_read
),

sounds as (
    select
        recording_id,
        'sound type' as field,
        part as value,
        case field
            when 'unsure' then 'says nothing'
            when 'other' then 'another source of sound'
            else 'no known word'
        end as reason
    from {{ ref('int_birds_sound_types') }}
    where field in ('unsure', 'other', 'unknown')
),

untidy as (
    select * from unread
    union all
    select * from sounds
)

select distinct
    recording_id,
    field,
    value,
    reason
from untidy
