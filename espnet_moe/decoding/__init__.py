"""Decoding: batched, key-value-cached greedy and beam search."""
