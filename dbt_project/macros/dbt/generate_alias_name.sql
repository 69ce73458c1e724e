{#-
    The name of a relation. Of a mart with versions the latest has the mart's own name, so that readers who name no
    version go along; those before are called <mart>_v<N> until their deprecation date.
-#}
{% macro generate_alias_name(custom_alias_name=none, node=none) -%}
    {%- if custom_alias_name -%}
        {{ custom_alias_name | trim }}
    {%- elif node.version and node.version != node.latest_version -%}
        {{ node.name ~ '_v' ~ node.version }}
    {%- else -%}
        {{ node.name }}
    {%- endif -%}
{%- endmacro %}
