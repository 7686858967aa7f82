"""Settings of the whole suite."""

from hypothesis import settings

# A slow machine is no fault of the code: an example may take as long as it takes.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
