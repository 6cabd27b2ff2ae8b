"""The graph plane: building ONNX graphs, and the `l4` dialect with its definitions."""
