"""Weights in fewer bits: schemes say what is stored, and kernels compute it."""

from l4export.quantization.quantize import dequantize, quantize_rows
from l4export.quantization.schemes import Scheme

__all__ = ["Scheme", "dequantize", "quantize_rows"]
