"""What to read, in which order: manifests, ratios, schedules and sampling. Standard library and numpy only."""
