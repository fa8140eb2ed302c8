"""Adapters that others have trained, as experts."""
