"""Mixtures of experts for multilingual speech foundation models, in ESPnet's recipe style."""

__version__ = "0.1.0"
