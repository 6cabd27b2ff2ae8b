"""Text in and out: tokenizers, streams of text, chat templates."""
