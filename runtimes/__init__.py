"""Thin runtimes."""
