{#-
    on-run-start, for people only: `dbt run` does not load seeds, so a person's schema gets a copy of the published
    ones that it lacks. `dbt seed` replaces the copy by the person's own.
-#}
{% macro borrow_seeds() -%}
    {%- if execute and target.name != 'platform' and flags.WHICH == 'run' -%}
        {%- for seed in graph.nodes.values() | selectattr('resource_type', 'equalto', 'seed') -%}
            {%- set own = adapter.get_relation(seed.database, seed.schema, seed.name) -%}
            {%- set published = adapter.get_relation(seed.database, 'staging', seed.name) -%}
            {%- if not own and published -%}
                {%- do run_query('create schema if not exists ' ~ seed.schema) -%}
                {%- do run_query('create table ' ~ seed.schema ~ '.' ~ seed.name ~ ' as table ' ~ published) -%}
            {%- elif not own -%}
                {%- do exceptions.raise_compiler_error(
                    'The seed ' ~ seed.name ~ ' is not loaded. Run `dbt seed` once, then `dbt run` again.'
                ) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro %}
