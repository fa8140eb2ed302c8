"""Score files in sclite's shape: ``ref.trn``, ``hyp.trn``, ``result.txt``; and ``counts.tsv``."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_moe.data.files import read_lines, write_text
from espnet_moe.scoring.error_rates import Alignment, EditCounts, percent
from espnet_moe.scoring.files import ScoringError

COUNTS_HEADER = ("utt_id", "language", "cor", "sub", "del", "ins")


@dataclass(frozen=True)
class ScoredUtterance:
    """Who said it and in which language: what the score files write beside an alignment."""

    utt_id: str
    speaker: str
    language: str


def write_score_files(
    folder: Path,
    utterances: Sequence[ScoredUtterance],
    counts: EditCounts,
    alignments: Sequence[Alignment],
) -> None:
    """Write ``ref.trn``, ``hyp.trn``, ``result.txt`` and ``counts.tsv``.

    Args:
        folder: ``<set>/score_wer`` or ``<set>/score_cer``.
        utterances: The utterances, in the order of the counts and of the alignments.
        counts: Edits of each utterance.
        alignments: Aligned words or characters of each utterance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(
        folder / "ref.trn",
        _trn(utterances, [alignment.reference for alignment in alignments]),
    )
    write_text(
        folder / "hyp.trn",
        _trn(utterances, [alignment.hypothesis for alignment in alignments]),
    )
    write_text(folder / "result.txt", _result(utterances, counts, alignments))
    write_text(folder / "counts.tsv", _counts_tsv(utterances, counts))


def read_counts(path: Path) -> tuple[list[str], list[str], EditCounts]:
    """Read a ``counts.tsv``.

    Returns:
        Utterance ids, their languages, and their edits.

    Raises:
        DataDirError: When the file is missing or is not UTF-8.
        ScoringError: When it is of another layout.
    """
    ids: list[str] = []
    languages: list[str] = []
    numbers: list[list[int]] = []
    for line_number, line in read_lines(path):
        fields = line.split("\t")
        if line_number == 1 and tuple(fields) == COUNTS_HEADER:
            continue
        if len(fields) != len(COUNTS_HEADER) or not all(f.isdecimal() for f in fields[2:]):
            raise ScoringError(
                f"{path}:{line_number} is not '{' '.join(COUNTS_HEADER)}'; score the set again"
            )
        ids.append(fields[0])
        languages.append(fields[1])
        numbers.append([int(field) for field in fields[2:]])
    table = np.array(numbers, dtype=np.int64).reshape(-1, 4)
    return ids, languages, EditCounts(*table.T)


def _counts_tsv(utterances: Sequence[ScoredUtterance], counts: EditCounts) -> str:
    lines = ["\t".join(COUNTS_HEADER)]
    for row, utterance in enumerate(utterances):
        edits = (counts.correct, counts.substitutions, counts.deletions, counts.insertions)
        numbers = [str(kind[row]) for kind in edits]
        lines.append("\t".join([utterance.utt_id, utterance.language, *numbers]))
    return "\n".join(lines) + "\n"


def _trn(utterances: Sequence[ScoredUtterance], sentences: Sequence[tuple[str | None, ...]]) -> str:
    lines = []
    for utterance, sentence in zip(utterances, sentences, strict=True):
        tokens = " ".join(_shown(token) for token in sentence if token is not None)
        lines.append(f"{tokens}\t({utterance.speaker}-{utterance.utt_id})\n")
    return "".join(lines)


def _shown(token: str) -> str:
    return "<space>" if token == " " else token


def _result(
    utterances: Sequence[ScoredUtterance], counts: EditCounts, alignments: Sequence[Alignment]
) -> str:
    """Draw sclite's summary, a line per language, and the aligned utterances below it."""
    languages = np.array([utterance.language for utterance in utterances])
    rows = [(name, counts.select(languages == name)) for name in sorted(set(languages.tolist()))]
    head = f"| {'LANG':<8}| {'# Snt':>7} {'# Wrd':>8} "
    head += "|" + "".join(f"{name:>8}" for name in ("Corr", "Sub", "Del", "Ins", "Err", "S.Err"))
    rule = "|" + "-" * (len(head) - 1) + "|"
    lines = [rule, head + "|", rule]
    for name, part in rows:
        lines.append(_result_row(name, part))
    lines += [rule, _result_row("Sum/Avg", counts), rule, ""]
    for row, (utterance, alignment) in enumerate(zip(utterances, alignments, strict=True)):
        edits = (counts.correct, counts.substitutions, counts.deletions, counts.insertions)
        numbers = " ".join(str(kind[row]) for kind in edits)
        lines.append(f"id: ({utterance.speaker}-{utterance.utt_id})")
        lines.append(f"Scores: (#C #S #D #I) {numbers}")
        lines += _drawn(alignment)
        lines.append("")
    return "\n".join(lines)


def _result_row(name: str, counts: EditCounts) -> str:
    words = int(counts.lengths.sum())
    kinds = (counts.correct, counts.substitutions, counts.deletions, counts.insertions)
    rates = [percent(int(kind.sum()), words) for kind in kinds]
    rates += [counts.rate, counts.sentence_rate]
    numbers = "".join(f"{rate:8.1f}" for rate in rates)
    return f"| {name:<8}| {len(counts.errors):>7} {words:>8} |{numbers}|"


def _drawn(alignment: Alignment) -> list[str]:
    """Return the REF, HYP and Eval lines, columns aligned by the width a terminal shows."""
    columns = []
    for reference, hypothesis in zip(alignment.reference, alignment.hypothesis, strict=True):
        left = _shown(reference) if reference is not None else None
        right = _shown(hypothesis) if hypothesis is not None else None
        if left is None:
            verdict = "I"
        elif right is None:
            verdict = "D"
        else:
            verdict = "S" if left != right else ""
        width = max(_width(left or ""), _width(right or ""), 1)
        cells = (left or "*" * width, right or "*" * width, verdict)
        columns.append([cell + " " * (width - _width(cell)) for cell in cells])
    titles = ("REF: ", "HYP: ", "Eval:")
    return [
        f"{title} {' '.join(column[row] for column in columns)}".rstrip()
        for row, title in enumerate(titles)
    ]


def _width(token: str) -> int:
    """Return how many terminal cells a token takes: combining marks none, wide letters two."""
    width = 0
    for character in token:
        if unicodedata.category(character) not in {"Mn", "Me", "Cf"}:
            width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return width
