{{ described_recordings('aviary') }}
