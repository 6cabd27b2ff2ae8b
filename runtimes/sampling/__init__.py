"""How the next token is chosen from logits: settings, filters, random numbers, log probabilities."""
