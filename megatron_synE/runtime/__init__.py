"""Everything that depends on the device, the launcher or the operating system."""
