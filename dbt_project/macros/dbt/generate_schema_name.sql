{#- Where a model is built: the exact schema of its layer for the platform, a person's own schemas otherwise. -#}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {%- set layer = (custom_schema_name or 'staging') | trim -%}
    {%- if target.name != 'platform' -%}
        {{ target.schema }}_{{ layer }}
    {%- elif layer == 'marts' -%}
        {#- fqn is [project, 'marts', domain, name] -#}
        marts_next_{{ node.fqn[2] }}
    {%- else -%}
        {{ layer }}
    {%- endif -%}
{%- endmacro %}
