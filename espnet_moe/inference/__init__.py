"""Using a trained mixture: speech in, text out."""
