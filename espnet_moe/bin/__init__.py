"""Command lines: one module a stage, run as ``python -m espnet_moe.bin.<verb>``."""
