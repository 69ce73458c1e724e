{#-
    The split of a row: what its source publishes wins over what we recorded for its leakage group.
-#}
{% macro resolved_split(published, recorded) -%}
    coalesce({{ published }}, {{ recorded }})
{%- endmacro %}

{#-
    Whether a training row must stay out because its leakage group holds rows of another split.

    A group keeps the split that was recorded when it was first seen, and a held-out row stays held out; so it is the
    training row that goes. One overlap is left: who publishes both the training row and the held-out row, as one
    corpus, has decided so (scores are only comparable on those rows); the frozen version counts that overlap.

    group: the column that names the leakage group

    Expects a query with that column and publisher, published_split, recorded_split, split and eligible.
-#}
{% macro bridges_splits(group='group_key') -%}
    split = 'train' and eligible and case
        when published_split is null
            then count(*) filter (where eligible and split != 'train') over (partition by {{ group }}) > 0
        else
            count(*) filter (where eligible and split != 'train') over (partition by {{ group }})
            > count(*) filter (where eligible and split != 'train' and published_split is not null)
                over (partition by {{ group }}, publisher)
            or (
                recorded_split != 'train'
                and count(*) filter (where eligible and split != 'train' and published_split is not null)
                    over (partition by {{ group }}, publisher) = 0
            )
    end
{%- endmacro %}
