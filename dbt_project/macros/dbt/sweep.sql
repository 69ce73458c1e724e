{#- A materialization that leaves no relation: it runs its statements, after everything it refers to. -#}
{% materialization sweep, adapter='postgres' %}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}
    {% call statement('main') %}{{ sql }}{% endcall %}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {% do adapter.commit() %}
    {{ return({'relations': []}) }}
{% endmaterialization %}

{#-
    Delete the vanished keys of these core models, in the order given: children before parents.
    The names must be literal `ref()`s in the model, so that the sweep runs after all of them.
    Where people build a part of core and defer the rest, the published tables are not theirs to sweep.
-#}
{% macro sweep(relations) -%}
    {%- if execute -%}
        {%- for relation in relations if relation.schema == generate_schema_name('core', none) -%}
            {%- set node = graph.nodes['model.lyrebird.' ~ relation.identifier] -%}
            {%- set keys = node.config.unique_key -%}
            {%- set keys = [keys] if keys is string else keys %}
delete from {{ relation }} as dbt_dest
using {{ vanished_table() }} as gone
where gone.model = '{{ relation.identifier }}' and gone.key = {{ key_text('dbt_dest', keys) }};
delete from {{ vanished_table() }} where model = '{{ relation.identifier }}';
        {%- endfor -%}
    {%- endif -%}
{%- endmacro %}
