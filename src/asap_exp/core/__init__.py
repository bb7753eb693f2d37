"""Infrastructure shared by all stages: configuration, runs, records, files, errors."""
