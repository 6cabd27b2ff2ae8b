"""What this computer has: memory, drivers, TensorRT."""
