{{ slowly_changing(
    ref('stg_tatoeba__sentence_versions'),
    ['sentence_id'],
    ['language', 'text', 'contributor', 'licence_code'],
) }}
