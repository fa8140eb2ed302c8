"""Packing trained mixtures for others: archives, experts alone, folders for the hub."""
