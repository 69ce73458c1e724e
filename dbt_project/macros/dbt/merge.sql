{#-
    dbt's merge, with two differences that a table with children needs.

    1. A row that did not change is not written again: most of an incremental run changes nothing.
    2. A key that is in the table and no longer in the query is noted in <core>.vanished. It is not deleted here,
       because children that are merged later still refer to it; `sweep_<domain>` deletes, children first.
       A model whose query gives only what is new says `meta: {complete: false}` and notes its vanished keys itself.
-#}
{% macro postgres__get_merge_sql(target, source, unique_key, dest_columns, incremental_predicates=none) -%}
    {%- set keys = [unique_key] if unique_key is string else unique_key -%}
    {%- set rest = dest_columns | map(attribute='name') | reject('in', keys) | list -%}
    {%- set columns = dest_columns | map(attribute='quoted') | join(', ') -%}
    {%- set on = [] -%}
    {%- for key in keys -%}
        {%- do on.append('dbt_source.' ~ key ~ ' = dbt_dest.' ~ key) -%}
    {%- endfor -%}
    {%- if config.get('meta', {}).get('complete', true) and model.config.materialized == 'incremental' %}
    delete from {{ vanished_table() }} where model = '{{ model.name }}';
    insert into {{ vanished_table() }} (model, key)
    select '{{ model.name }}', {{ key_text('dbt_dest', keys) }}
    from {{ target }} as dbt_dest
    where not exists (select 1 from {{ source }} as dbt_source where {{ on | join(' and ') }});
    {%- endif %}

    merge into {{ target }} as dbt_dest
    using {{ source }} as dbt_source
    on {{ (on + (incremental_predicates or [])) | join(' and ') }}
    {%- if rest %}
    when matched and row(
        {%- for name in rest %}dbt_dest."{{ name }}"{{ ', ' if not loop.last }}{% endfor -%}
    ) is distinct from row(
        {%- for name in rest %}dbt_source."{{ name }}"{{ ', ' if not loop.last }}{% endfor -%}
    ) then update set
        {% for name in rest %}"{{ name }}" = dbt_source."{{ name }}"{{ ', ' if not loop.last }}{% endfor %}
    {%- endif %}
    when not matched then insert ({{ columns }})
    values ({% for column in dest_columns %}dbt_source.{{ column.quoted }}{{ ', ' if not loop.last }}{% endfor %})
{%- endmacro %}

{#- A row's key as one text, for keys of one or several columns. -#}
{% macro key_text(alias, keys) -%}
    concat_ws('|'{% for key in keys %}, {{ alias }}.{{ key }}{% endfor %})
{%- endmacro %}

{% macro vanished_table() -%}
    {{ api.Relation.create(database=target.database, schema=generate_schema_name('core', none), identifier='vanished') }}
{%- endmacro %}

{#- on-run-start: the table of vanished keys must be there before two threads merge into it. -#}
{% macro prepare_core() -%}
    {%- if execute and flags.WHICH in ('run', 'build', 'retry') -%}
        {%- if target.name == 'published' -%}
            {%- do exceptions.raise_compiler_error('Nothing is built in the target published: it names what readers see.') -%}
        {%- endif -%}
        {%- set schema = generate_schema_name('core', none) -%}
        {%- set layers = [] -%}
        {%- for name in selected_resources if name in graph.nodes -%}
            {%- do layers.append(graph.nodes[name].fqn[1]) -%}
        {%- endfor -%}
        {%- if 'core' not in layers -%}
            {{ return('') }}
        {%- endif -%}
        {%- if not adapter.check_schema_exists(target.database, schema) -%}
            {%- do run_query('create schema if not exists ' ~ schema) -%}
        {%- endif -%}
        {%- if not adapter.get_relation(target.database, schema, 'vanished') -%}
            {%- do run_query(
                'create table if not exists ' ~ vanished_table()
                ~ ' (model text not null, key text not null, primary key (model, key))'
            ) -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro %}

{#- post-hook: the planner should know a table's size before the next model joins it. -#}
{% macro analyze_table() -%}
    {%- if model.config.materialized == 'incremental' -%} analyze {{ this }} {%- endif -%}
{%- endmacro %}
