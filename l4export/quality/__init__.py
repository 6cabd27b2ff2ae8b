"""What quantisation costs, measured on a text."""
