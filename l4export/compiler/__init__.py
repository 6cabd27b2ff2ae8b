"""From options to an engine directory."""
