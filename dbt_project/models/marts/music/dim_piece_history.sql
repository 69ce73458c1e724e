{{ slowly_changing(
    ref('stg_notes__piece_versions'),
    ['piece_id'],
    ['source', 'title', 'composer', 'key_signature', 'time_signature', 'fingerprint', 'licence_code'],
) }}
