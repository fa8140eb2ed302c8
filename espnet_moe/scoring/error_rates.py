"""Word and character error rates, and their bootstrap intervals over utterances.

Edits are jiwer's: minimal Levenshtein, all costs 1. (sclite weighs a substitution 4 and the others
3, so that its split into kinds may differ by a little.) Characters are Unicode code points of the
normalised text: a matra or virama is a character of its own, and the space between words counts,
as in ESPnet's ``score_cer``, where it is the token ``<space>``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer
import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Unit = Literal["word", "character"]

CONFIDENCE = 95.0  # percent
_NORMAL_95 = 1.959964  # standard deviations that hold so much of a normal distribution
_DRAWS_AT_ONCE = 4_000_000  # 32 MB of indices


@dataclass(frozen=True)
class EditCounts:
    """The edits that turn each reference into its hypothesis; every array is ``(utterances,)``."""

    correct: IntArray
    substitutions: IntArray
    deletions: IntArray
    insertions: IntArray

    @property
    def lengths(self) -> IntArray:
        """Words or characters of each reference, ``(utterances,)``."""
        return self.correct + self.substitutions + self.deletions

    @property
    def errors(self) -> IntArray:
        """All edits of each utterance, ``(utterances,)``."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors in percent of the reference's words or characters."""
        return percent(int(self.errors.sum()), int(self.lengths.sum()))

    @property
    def sentence_rate(self) -> float:
        """Percent of the utterances that hold an error."""
        return percent(int((self.errors > 0).sum()), len(self.errors))

    def select(self, chosen: npt.NDArray[np.bool_] | IntArray) -> "EditCounts":
        """Return the counts of the chosen utterances: a mask ``(utterances,)``, or indices."""
        return EditCounts(
            self.correct[chosen],
            self.substitutions[chosen],
            self.deletions[chosen],
            self.insertions[chosen],
        )


def join_counts(parts: Sequence[EditCounts]) -> EditCounts:
    """Return the counts of the utterances of all parts, one after the other."""
    kinds = ("correct", "substitutions", "deletions", "insertions")
    return EditCounts(*(np.concatenate([getattr(part, kind) for part in parts]) for kind in kinds))


@dataclass(frozen=True)
class Alignment:
    """A reference and a hypothesis side by side: ``None`` where the other has an extra token."""

    reference: tuple[str | None, ...]
    hypothesis: tuple[str | None, ...]


def percent(part: int, whole: int) -> float:
    """Return ``part`` in percent of ``whole``; NaN for nothing of nothing."""
    return 100 * part / whole if whole else float("nan")


def count_edits(
    references: Sequence[str], hypotheses: Sequence[str], unit: Unit
) -> tuple[EditCounts, list[Alignment]]:
    """Align normalised texts, utterance by utterance.

    Args:
        references: Normalised texts, none of them empty.
        hypotheses: Normalised texts in the same order; may be empty.
        unit: ``word`` for WER, ``character`` for CER.

    Returns:
        The edits and the alignment of each utterance.
    """
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    output = process(list(references), list(hypotheses))
    counts = np.zeros((4, len(references)), dtype=np.int64)
    alignments = []
    for row, (reference, hypothesis, chunks) in enumerate(
        zip(output.references, output.hypotheses, output.alignments, strict=True)
    ):
        left: list[str | None] = []
        right: list[str | None] = []
        for chunk in chunks:
            old = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            new = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            size = max(len(old), len(new))
            counts[_KINDS[chunk.type], row] += size
            left += old or [None] * size
            right += new or [None] * size
        alignments.append(Alignment(tuple(left), tuple(right)))
    return EditCounts(*counts), alignments


def count_best_edits(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], unit: Unit
) -> tuple[EditCounts, list[Alignment]]:
    """Align each hypothesis with the reference, of several, that it is closest to.

    Args:
        references: Normalised texts of each utterance, at least one, none of them empty.
        hypotheses: Normalised texts in the same order; may be empty.
        unit: ``word`` for WER, ``character`` for CER.

    Returns:
        The edits and the alignment with the reference of the lowest rate; the first of equals.
    """
    owners = [row for row, texts in enumerate(references) for _ in texts]
    flat = [text for texts in references for text in texts]
    counts, alignments = count_edits(flat, [hypotheses[row] for row in owners], unit)
    if len(flat) == len(references):
        return counts, alignments
    rates = counts.errors / counts.lengths
    best: dict[int, int] = {}
    for index, row in enumerate(owners):
        if row not in best or rates[index] < rates[best[row]]:
            best[row] = index
    chosen = np.array([best[row] for row in range(len(references))], dtype=np.int64)
    return counts.select(chosen), [alignments[index] for index in chosen]


_KINDS = {"equal": 0, "substitute": 1, "delete": 2, "insert": 3}


def bootstrap_rates(
    errors: npt.NDArray, lengths: IntArray, resamples: int, seed: int | Sequence[int]
) -> npt.NDArray:
    """Draw utterances with replacement and return each draw's rate.

    Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation",
    ICASSP 2004. The draws depend on the seed and the number of utterances alone: the difference
    between two systems' rates, draw by draw, is their paired bootstrap.

    Args:
        errors: Errors of each utterance, or whatever else adds up, ``(utterances,)``.
        lengths: Reference words or characters of each utterance, ``(utterances,)``, all above 0.
        resamples: How many draws.
        seed: Seed of the draws: a number or several.

    Returns:
        Rates in percent, ``(resamples,)``.
    """
    generator = np.random.default_rng(seed)
    size = len(errors)
    rates = np.empty(resamples)
    block = max(1, _DRAWS_AT_ONCE // size)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        picks = generator.integers(size, size=(stop - start, size))
        rates[start:stop] = 100 * errors[picks].sum(axis=1) / lengths[picks].sum(axis=1)
    return rates


def bootstrap_interval(
    errors: IntArray, lengths: IntArray, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % percentile interval of ``bootstrap_rates``, in percent."""
    return interval(bootstrap_rates(errors, lengths, resamples, seed))


def interval(draws: npt.NDArray) -> tuple[float, float]:
    """Return the 95 % percentile interval of draws, ``(resamples,)``."""
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, 0 to 1; (0, 1) for nothing of nothing.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    if not total:
        return 0.0, 1.0
    z2 = _NORMAL_95**2
    centre = (right + z2 / 2) / (total + z2)
    half = _NORMAL_95 * np.sqrt(right * (total - right) / total + z2 / 4) / (total + z2)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
