"""What is in a built engine."""
