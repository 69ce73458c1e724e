{{ described_versions('xeno_canto') }}
