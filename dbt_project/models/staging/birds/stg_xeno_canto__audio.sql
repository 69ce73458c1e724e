{{ recorded_files('xeno_canto') }}
