"""The engine directory: the only contract between the build and a runtime."""
