{{ described_recordings('xeno_canto') }}
