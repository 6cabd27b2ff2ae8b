"""Weights in fewer bits: schemes (what is stored) and kernels (how it is computed)."""

from l4export.quantization.quantize import dequantize, quantize_rows
from l4export.quantization.schemes import Scheme

__all__ = ["Scheme", "dequantize", "quantize_rows"]
