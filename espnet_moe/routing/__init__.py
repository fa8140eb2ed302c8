"""Routing: which experts each utterance gets."""
