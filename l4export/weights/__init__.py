"""The weight plane: recipes for weights, and writing them in a stream."""
