"""Backbones: frozen speech foundation models behind one protocol."""
