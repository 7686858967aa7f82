"""The topic classifier on real labelled text in two languages, out of ordinary packages: one command, one report."""
