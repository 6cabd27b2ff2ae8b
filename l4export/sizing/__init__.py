"""Which engine fits a device."""
