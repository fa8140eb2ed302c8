"""Readers for the corpora, each in the layout it is published in."""
