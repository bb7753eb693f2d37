"""Infrastructure that every stage shares: configuration, runs, records, files, errors."""
