select
    audit_id,
    subject,
    kind,
    domain,
    severity,
    is_success,
    expectations,
    failed_count,
    docs_url,
    audited_at
from {{ ref('stg_ops__audits') }}
