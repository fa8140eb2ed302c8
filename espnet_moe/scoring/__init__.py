"""Scoring: decode folders and references in, error rates with intervals and costs out."""

from espnet_moe.scoring.files import ScoringError
from espnet_moe.scoring.results import ScoringOptions, read_results, score_systems

__all__ = ["ScoringError", "ScoringOptions", "read_results", "score_systems"]
