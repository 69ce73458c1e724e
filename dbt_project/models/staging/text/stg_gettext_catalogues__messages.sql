with messages as (
    {{ current_version('gettext_catalogues', 'messages') }}
)

select
    package,
    package_version,
    language,
    coalesce(context, '') as context,
    source_text,
    target_text,
    form::integer as form,
    path,
    {{ tidy('licence') }} as licence,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from messages
