"""One script a figure; each prints the ratio it is about."""
