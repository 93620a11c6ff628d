"""From sound to text with PyTorch: features, batches, the greedy loop, word times."""
