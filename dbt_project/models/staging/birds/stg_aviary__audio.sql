{{ recorded_files('aviary') }}
