"""Bytes on disk: safetensors files, digests, journals."""
