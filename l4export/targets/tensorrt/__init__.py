"""TensorRT engines, compiled from the graph in an engine directory."""
