{#-
    Where a model is built: for the platform the exact schema of its layer, marts as candidates; for people their own
    schemas. The target `published` names what readers see, for documentation and deferral; nothing is built there.
-#}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {%- set layer = (custom_schema_name or 'staging') | trim -%}
    {%- if target.name not in ('platform', 'published') -%}
        {{ target.schema }}_{{ layer }}
    {%- elif layer == 'marts' and target.name == 'platform' -%}
        {#- fqn is [project, 'marts', domain, name] -#}
        marts_next_{{ node.fqn[2] }}
    {%- else -%}
        {{ layer }}
    {%- endif -%}
{%- endmacro %}
