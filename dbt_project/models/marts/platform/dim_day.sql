-- Every day that a recording can be of or a load can come on; metrics are counted along it.
select
    days.day::date as day,
    extract(year from days.day)::integer as year,
    extract(quarter from days.day)::integer as quarter,
    extract(month from days.day)::integer as month,
    extract(week from days.day)::integer as iso_week,
    extract(isodow from days.day)::integer as iso_weekday,
    extract(doy from days.day)::integer as day_of_year
from generate_series(timestamp '1889-01-01', timestamp '2060-12-31', interval '1 day') as days (day)
