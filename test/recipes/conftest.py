"""Fixtures of the recipes' tests."""

from slurm_node import slurm  # noqa: F401
