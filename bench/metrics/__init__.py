"""Metrics: callables that give one number for each image of a batch. `bench.columns` declares them."""
