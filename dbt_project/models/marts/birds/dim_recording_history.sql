{{ slowly_changing(
    ref('int_birds_recording_versions'),
    ['source', 'recording_key'],
    ['scientific_name', 'quality', 'sound_types', 'recordist', 'length_s', 'licence_code'],
) }}
