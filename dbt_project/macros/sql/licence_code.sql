{#- The code, in the seed `licences`, of a licence as a source writes it (a name, an SPDX tag, an address). -#}
{% macro licence_code(expression) -%}
    case
        when {{ expression }} is null or trim({{ expression }}) = '' then 'unknown'
        when {{ expression }} ~* 'publicdomain/zero|cc0' then 'CC0'
        when {{ expression }} ~* 'by-nc-sa' then 'CC-BY-NC-SA'
        when {{ expression }} ~* 'by-nc-nd' then 'CC-BY-NC-ND'
        when {{ expression }} ~* 'by-nc' then 'CC-BY-NC'
        when {{ expression }} ~* 'by-sa' then 'CC-BY-SA'
        when {{ expression }} ~* 'by-nd' then 'CC-BY-ND'
        when {{ expression }} ~* 'cc[- ]by|licenses/by/' then 'CC-BY'
        when {{ expression }} ~* 'public[- ]?domain' then 'public-domain'
        when {{ expression }} ~* 'lgpl|lesser general public' then 'LGPL'
        when {{ expression }} ~* 'gpl|general public' then 'GPL'
        when {{ expression }} ~* 'bsd' then 'BSD'
        when {{ expression }} ~* 'apache' then 'Apache-2.0'
        when {{ expression }} ~* '\mmit\M' then 'MIT'
        when {{ expression }} ~* 'research|non-?commercial' then 'research-only'
        when {{ expression }} ~* 'unknown|not stated|none' then 'unknown'
        else 'other'
    end
{%- endmacro %}
