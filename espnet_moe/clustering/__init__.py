"""Embeddings of the frozen encoder, clusters of them, and experts made from the clusters."""
