"""What is special to one target."""
