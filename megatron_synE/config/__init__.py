"""One YAML per run: schema, loading, validation, derived plan."""
