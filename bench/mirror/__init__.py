"""The Weights & Biases mirror of the store."""
