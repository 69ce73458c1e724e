{{ described_versions('aviary') }}
