{#- A stable surrogate key: md5 of the natural key's parts, null told apart from the empty text. -#}
{% macro surrogate_key(parts) -%}
    md5(concat_ws('|'{% for part in parts %}, coalesce(({{ part }})::text, '~'){% endfor %}))
{%- endmacro %}

{#- The text without leading, trailing and doubled white space; null when nothing is left. -#}
{% macro tidy(expression) -%}
    nullif(trim(regexp_replace({{ expression }}, '\s+', ' ', 'g')), '')
{%- endmacro %}

{#- The value as a type, or null when it does not read as one ('2012-00-00' is not a date). -#}
{% macro try_cast(expression, type) -%}
    case when pg_input_is_valid({{ expression }}, '{{ type }}') then ({{ expression }})::{{ type }} end
{%- endmacro %}

{#- A latitude or longitude written as text; null when it is none. `most` is 90 or 180. -#}
{% macro degrees(expression, most) -%}
    case
        when abs({{ try_cast(expression, 'double precision') }}) <= {{ most }}
            then ({{ expression }})::double precision
    end
{%- endmacro %}

{#- Seconds of a length written m:ss or h:mm:ss. -#}
{% macro seconds(expression) -%}
    case
        when {{ expression }} ~ '^\d{1,6}:\d{2}$'
            then split_part({{ expression }}, ':', 1)::int * 60 + split_part({{ expression }}, ':', 2)::int
        when {{ expression }} ~ '^\d{1,5}:\d{2}:\d{2}$'
            then
                split_part({{ expression }}, ':', 1)::int * 3600
                + split_part({{ expression }}, ':', 2)::int * 60
                + split_part({{ expression }}, ':', 3)::int
    end
{%- endmacro %}

{#- Our name of a split that a source publishes (val, dev, test_2016_flickr, …); null for none. -#}
{% macro split_name(expression) -%}
    case
        when lower({{ expression }}) like 'train%' then 'train'
        when lower({{ expression }}) like 'val%' or lower({{ expression }}) like 'dev%' then 'valid'
        when lower({{ expression }}) like 'test%' then 'test'
    end
{%- endmacro %}

{#- What two writings of one sentence share: letters only, lower case, without markup. Empty for a text of no letters. -#}
{% macro normalised_text(expression) -%}
    trim(regexp_replace(
        lower(regexp_replace({{ expression }}, '<[^>]*>|%\(\w+\)[a-z]|%[a-z]|\{[^}]*\}', ' ', 'g') collate pg_c_utf8),
        '[^[:alpha:]]+', ' ', 'g'
    ))
{%- endmacro %}

{#- Words with at least one letter. -#}
{% macro words(expression) -%}
    regexp_count({{ expression }} collate pg_c_utf8, '\S*[[:alpha:]]\S*')
{%- endmacro %}
