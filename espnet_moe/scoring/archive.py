"""What earlier scoring and decoding left in ``exp``, each file read once."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.scoring.error_rates import EditCounts
from espnet_moe.scoring.folders import ALL, MIXED, read_jobs, read_stats
from espnet_moe.scoring.sclite import read_counts

Counts = tuple[list[str], list[str], EditCounts]  # ids, languages, edits
Column = tuple[str, str]  # a set and a language


class Archive:
    """Score and decode folders of an experiment.

    Args:
        exp: The experiment folder, which holds ``<system>/<inference_tag>/<set>``.
    """

    def __init__(self, exp: Path) -> None:
        self.exp = exp
        self.all_counts = cache(self._counts)
        self.stats = cache(self._stats)
        self.jobs = cache(self._jobs)

    def counts(self, row: dict[str, Any]) -> tuple[list[str], EditCounts]:
        """Return the ids of a result row's utterances, and their edits in words.

        Raises:
            UserError: When ``score_wer/counts.tsv`` is missing or of another layout.
        """
        ids, languages, counts = self.all_counts(row["system"], row["inference_tag"], row["set"])
        if row["language"] in (ALL, MIXED):
            return ids, counts
        chosen = np.array([language == row["language"] for language in languages], dtype=np.bool_)
        kept = [utt_id for utt_id, keep in zip(ids, chosen, strict=True) if keep]
        return kept, counts.select(chosen)

    def _counts(self, system: str, inference_tag: str, name: str) -> Counts:
        return read_counts(self.exp / system / inference_tag / name / "score_wer" / "counts.tsv")

    def _stats(self, system: str, inference_tag: str, name: str) -> dict[str, dict[str, Any]]:
        return read_stats(self.exp / system / inference_tag / name / "logdir")

    def _jobs(self, system: str, inference_tag: str) -> tuple[dict[str, Any], ...]:
        return read_jobs(self.exp / system / inference_tag / "logdir")
