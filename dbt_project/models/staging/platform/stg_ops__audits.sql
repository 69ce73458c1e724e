select
    id as audit_id,
    subject,
    kind,
    domain,
    severity,
    success as is_success,
    expectations,
    jsonb_array_length(case when jsonb_typeof(failed) = 'array' then failed else '[]'::jsonb end) as failed_count,
    docs_url,
    at as audited_at
from {{ source('ops', 'audit') }}
