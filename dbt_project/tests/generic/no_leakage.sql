{#-
    Training rows whose leakage group is held out elsewhere. One overlap may stay: where one publisher has published both
    sides. What `bridges_splits` leaves out is judged here by its outcome.
-#}
{% test no_leakage(model, group, publisher) %}
select
    trained.{{ group }},
    count(*) as training_rows
from {{ model }} as trained
where
    trained.split = 'train'
    and exists (
        select 1
        from {{ model }} as held_out
        where
            held_out.{{ group }} = trained.{{ group }}
            and held_out.split != 'train'
            and not (
                trained.split_origin = 'published'
                and held_out.split_origin = 'published'
                and held_out.{{ publisher }} = trained.{{ publisher }}
            )
    )
group by trained.{{ group }}
{% endtest %}
