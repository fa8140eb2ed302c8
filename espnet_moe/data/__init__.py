"""Utterances, Kaldi data directories, audio, text normalisation, and corpus readers."""
