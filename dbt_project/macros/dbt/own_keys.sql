{#-
    Columns and constraints of a new table, as dbt writes them; but with deferral dbt leads every foreign key to the
    published parent, and a key onto published core would keep rows and tables there from being deleted. So a person's
    table refers to the parent in the person's own schema, and has no such key while there is none.
-#}
{% macro postgres__get_table_columns_and_constraints() -%}
    {%- if target.name == 'dev' -%}
        {%- do model.update({'constraints': own_keys(model['constraints'])}) -%}
        {%- for column in model['columns'].values() -%}
            {%- do column.update({'constraints': own_keys(column['constraints'])}) -%}
        {%- endfor -%}
    {%- endif -%}
    {{ return(table_columns_and_constraints()) }}
{%- endmacro %}

{#- The constraints, with foreign keys to tables of the schema that is being built. -#}
{% macro own_keys(constraints) -%}
    {%- set kept = [] -%}
    {%- for constraint in constraints -%}
        {%- if constraint['type'] != 'foreign_key' -%}
            {%- do kept.append(constraint) -%}
        {%- else -%}
            {%- set name = constraint['to'].split('.')[-1].strip('"') -%}
            {%- set parent = adapter.get_relation(this.database, this.schema, name) -%}
            {%- if parent -%}
                {%- do kept.append(dict(constraint, to=parent | string)) -%}
            {%- endif -%}
        {%- endif -%}
    {%- endfor -%}
    {{ return(kept) }}
{%- endmacro %}
