"""Stage functions of dataprep: source, curate, encode, version."""
