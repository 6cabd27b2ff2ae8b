"""KV caches of sessions, in this machine's memory or on a device."""
