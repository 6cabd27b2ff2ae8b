"""PyTorch: the models that engines are compared with."""
