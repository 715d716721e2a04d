"""What a trained model can do: needles found, perplexity by position, and the report that shows it."""
