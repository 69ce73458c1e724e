{#-
    What people write by hand, read as far as it can be read. Each macro gives null for what says nothing certain;
    `int_birds_untidy_values` names those values and why.
-#}

{#- Lower case, without accents: 'Vocalização' and 'vocalizacao' are one word. -#}
{% macro plain_letters(expression) -%}
    lower(normalize(
        regexp_replace(normalize({{ expression }}, nfkd), '[\u0300-\u036f]', '', 'g'), nfc
    ) collate pg_c_utf8)
{%- endmacro %}

{#- A name's letters alone: Nunes D´Acosta is Nunes D'Acosta, and GABRIEL LEITE is Gabriel Leite. -#}
{% macro folded(expression) -%}
    nullif(regexp_replace({{ plain_letters(expression) }}, '[^[:alnum:]]+', '', 'g'), '')
{%- endmacro %}

{#- UTF-8 that was read as Latin-1 on its way ('vocalizaÃ§Ã£o'), read again. -#}
{% macro unscrambled(expression) -%}
    case
        when {{ expression }} ~ '[ÃÂ][\u0080-\u00bf]' and {{ expression }} !~ '[^\u0001-\u00ff]'
            then convert_from(convert_to({{ expression }}, 'latin1'), 'utf8')
        else {{ expression }}
    end
{%- endmacro %}

{#- The epithet of a species out of its field; null for 'sp.', hybrids and what is no word. -#}
{% macro epithet(expression) -%}
    case
        when {{ expression }} ~* '(^|\s)(x|×|cf\.?|aff\.?)(\s|$)' then null
        else nullif(nullif(nullif(
            substring(lower(trim({{ expression }})) from '^[a-z]+(?:-[a-z]+)?(?=$|[\s?(])'),
        'sp'), 'spec'), 'indet')
    end
{%- endmacro %}

{#- A subspecies out of its own field, else out of the second word of the species' ('laperouse senex'). -#}
{% macro subspecies(own, of_species) -%}
    case
        when {{ own }} ~ '[a-z]\s*/\s*[a-z]' then null
        else coalesce(
            substring(lower(trim({{ own }})) from '^[a-z]+(?:-[a-z]+)?(?=$|[\s?(])'),
            substring(lower(trim({{ of_species }})) from '^[a-z-]+\s+([a-z]+(?:-[a-z]+)?)(?:$|[\s?(])')
        )
    end
{%- endmacro %}

{#- Whether a name is given without a doubt: no question mark, nothing assumed. -#}
{% macro is_certain(expression) -%}
    coalesce({{ expression }} !~* '\?|assum|presum|prob|likely|maybe|perhaps|possibl|\mcf\M', true)
{%- endmacro %}

{#-
    A time of day as people write it, in the form that PostgreSQL reads: 7:30, 12.37, 1815, 6h30, 7 am, 06:00:00 PM,
    15, 7-8 am (its beginning), c. 7:30. Null for anything else.
-#}
{% macro clock(expression) -%}
    substring(
        regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(
            lower(trim({{ expression }})),
            '^(~|ca?\.?\s|about\s|approx\.?\s)\s*|\s*(h|hs|hrs?|hours?)\.?$', '', 'g'),
            '([ap])\.?\s?m\.?$', '\1m'),
            '^(\d{1,2})\s*[.h]\s*(\d{2})', '\1:\2'),
            '^(\d{1,2}(?::\d{2})?)\s*(?:-|–|to)\s*\d{1,2}(?::\d{2})?', '\1'),
            '^(\d{1,2})(\s*[ap]m)?$', '\1:00\2')
        from '^(?:(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?:\s*[ap]m)?|(?:[01]\d|2[0-3])[0-5]\d)$'
    )
{%- endmacro %}

{% macro time_of_day(expression) -%}
    {{ try_cast(clock(expression), 'time') }}
{%- endmacro %}

{#- minute, or hour where only the hour or a span is told; null where no time is. -#}
{% macro time_precision(expression) -%}
    case
        when {{ time_of_day(expression) }} is null then null
        when {{ expression }} ~ '\d\s*(-|–|to)\s*\d' or {{ expression }} !~ '\d\s*[.:hH]\s*\d|\d{4}' then 'hour'
        else 'minute'
    end
{%- endmacro %}

{#- The part of the day where no clock was read: morning, afternoon, evening or night. -#}
{% macro part_of_day(expression) -%}
    case
        when {{ plain_letters(expression) }}
            ~ '^(early |late )?(am|a\.m\.|morning|dawn|sunrise|manana|manha|amanecer|matin|aube|morgen|morgens|ochtend)$'
            then 'morning'
        when {{ plain_letters(expression) }} ~ '^(early |late )?(pm|p\.m\.|noon|midday|afternoon|tarde|apres-midi|nachmittag|middag)$'
            then 'afternoon'
        when {{ plain_letters(expression) }} ~ '^(early |late )?(evening|dusk|sunset|anochecer|soir|abend|avond)$'
            then 'evening'
        when {{ plain_letters(expression) }} ~ '^(late |mid)?(night|noche|noite|nuit|nacht)$' then 'night'
    end
{%- endmacro %}

{#- The year, or month, of a date of which less is known than the day ('1998-02-00'); no bird was recorded before 1889. -#}
{% macro year_of(expression) -%}
    case
        when {{ expression }} ~ '^\d{4}(-\d{2}){0,2}$'
            and left({{ expression }}, 4)::integer between 1889 and 2100 then left({{ expression }}, 4)::integer
    end
{%- endmacro %}

{% macro month_of(expression) -%}
    case
        when {{ year_of(expression) }} is not null and substr({{ expression }}, 6, 2) between '01' and '12'
            then substr({{ expression }}, 6, 2)::integer
    end
{%- endmacro %}

{#- Metres above the sea: '1200m', '1,200 m', '350-400' (the middle) and '-2'; null for anything else. -#}
{% macro metres(expression) -%}
    case
        when {{ expression }} ~* '^\s*-?\d{1,3},\d{3}\s*m?\.?\s*$' or {{ expression }} ~* '^\s*-?\d+(\.\d+)?\s*m?\.?\s*$'
            then replace(substring({{ expression }} from '-?[\d.,]*\d'), ',', '')::double precision
        when {{ expression }} ~* '^\s*\d+\s*-\s*\d+\s*m?\s*$'
            then (
                substring({{ expression }} from '^\s*(\d+)')::double precision
                + substring({{ expression }} from '-\s*(\d+)')::double precision
            ) / 2
    end
{%- endmacro %}

{#- Whether a text only says that nothing is known: '?', 'xx:xx', '-', 'unknown', '0000-00-00'. -#}
{% macro says_nothing(expression) -%}
    {{ plain_letters(expression) }}
    ~ '^(?:[?x:.\s0-]*|\W*(?:unknown|unsure|uncertain|not (?:known|noted|stated|specified|recorded)|n/?a|none|no score)\W*)$'
{%- endmacro %}

{#- Genus and epithet of a scientific name of two words or more; null for fewer. -#}
{% macro species_of(expression) -%}
    substring({{ expression }} from '^[A-Z][a-z]+ [a-z]+(?:-[a-z]+)?')
{%- endmacro %}
