"""What an expert of one language does for another, and how much data a related one saves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.analysis.curves import Curves, compare_starts, told
from espnet_moe.analysis.decodings import DecodedSets
from espnet_moe.analysis.passes import BASE, Subject, encode, make_batches, token_loss, transcribe
from espnet_moe.analysis.record import About, Analysis
from espnet_moe.data.utterance import Utterance
from espnet_moe.errors import UserError
from espnet_moe.routing.families import family_of, load_families
from espnet_moe.scoring.error_rates import bootstrap_rates, interval

WER, LOSS = "wer", "loss"

SOURCES = (
    "Conneau et al., Unsupervised cross-lingual representation learning for speech recognition, "
    "arXiv:2006.13979 (related languages help each other)",
    "Bisani and Ney, Bootstrap estimates for confidence intervals in ASR performance evaluation, "
    "ICASSP 2004",
)


@dataclass(frozen=True)
class Cell:
    """What one expert makes of one language, an entry an utterance.

    Attributes:
        errors: Word errors, or nats; ``(utterances,)``.
        lengths: Reference words, or tokens; ``(utterances,)``.
    """

    errors: np.ndarray
    lengths: np.ndarray

    def rate(self, measure: str) -> float:
        """WER in percent, or nats a token."""
        return float(self.errors.sum() / self.lengths.sum()) * (100 if measure == WER else 1)


# By expert (or BASE) and language.
Cells = Mapping[tuple[str, str], Cell]


def run_all(
    subject: Subject,
    utterances: Mapping[str, Sequence[Utterance]],
    batch_size: int,
    with_wer: bool,
) -> dict[str, Cells]:
    """Give every language to the base and to every expert, with the prompt of its own language.

    Returns:
        Cells by measure: ``loss`` under teacher forcing; ``wer`` of a greedy search, if asked.
    """
    found: dict[str, dict[tuple[str, str], Cell]] = {LOSS: {}, **({WER: {}} if with_wer else {})}
    for language, own in utterances.items():
        batches = make_batches(subject, own, batch_size)
        tokens = np.concatenate([batch.counts for batch in batches])
        for condition in subject.conditions:
            sums, errors, words = [], [], []
            for batch in batches:
                gates = subject.gates(condition, len(batch.utterances))
                encoded = encode(subject, batch, gates)
                sums.append(token_loss(subject, batch, encoded, gates))
                if with_wer:
                    counts = transcribe(subject, batch, encoded, gates)
                    errors.append(counts.errors)
                    words.append(counts.lengths)
            found[LOSS][condition, language] = Cell(np.concatenate(sums), tokens)
            if with_wer:
                cell = Cell(np.concatenate(errors), np.concatenate(words))
                found[WER][condition, language] = cell
    return dict(found)


def read_all(
    which: DecodedSets, fixed: Mapping[str, str], baseline: str
) -> tuple[dict[str, Cells], dict[str, str]]:
    """Read decodings in which one expert took everything.

    Args:
        which: Where they are; its systems do not matter.
        fixed: System by expert, such as ``{"hi": "fixed_hi"}``.
        baseline: System of the base alone.

    Returns:
        Cells of the WER, and the reason for each decoding that could not be read.
    """
    systems = {baseline: BASE, **{system: expert for expert, system in fixed.items()}}
    own = DecodedSets(which.exp, which.data, which.inference_tag, tuple(systems), which.sets)
    decodings, missing = own.read()
    parts: dict[tuple[str, str], list[Cell]] = {}
    for decoding in decodings:
        languages = np.array([utt.language for utt in decoding.references.utterances])
        for language in sorted(set(languages.tolist())):
            counts = decoding.counts.select(languages == language)
            cell = Cell(counts.errors, counts.lengths)
            parts.setdefault((systems[decoding.system], language), []).append(cell)
    joined = {
        key: Cell(
            np.concatenate([cell.errors for cell in cells]),
            np.concatenate([cell.lengths for cell in cells]),
        )
        for key, cells in parts.items()
    }
    return {WER: joined}, missing


def transfer_table(
    cells: Cells, measure: str, own_expert: Mapping[str, str], draws: int, seed: int
) -> dict[str, Any]:
    """Rates and gains of every expert on every language.

    Args:
        cells: Of the base and the experts.
        measure: ``wer`` or ``loss``.
        own_expert: Expert by language, where it has one of its own.
        draws: Of the bootstrap over utterances, paired.
        seed: Of the draws.

    Returns:
        ``rows`` (base and experts), ``columns`` (languages), ``utterances``; matrices ``rate``,
        ``gain`` (percent less than the base; ``None`` where the base is perfect) and ``recovered``
        (of what the language's own expert gains, percent; ``None`` where that gains nothing), the
        first two with ``…_interval``.
    """
    rows = [BASE, *dict.fromkeys(e for e, _ in cells if e != BASE)]
    columns = list(dict.fromkeys(language for _, language in cells))
    table: dict[str, list[list[Any]]] = {
        key: [[None] * len(columns) for _ in rows]
        for key in ("rate", "rate_interval", "gain", "gain_interval", "recovered")
    }
    scale = 1.0 if measure == WER else 0.01  # of draws in percent
    for j, language in enumerate(columns):
        base = cells.get((BASE, language))
        of_base = _draws(base, draws, seed) if base is not None else None
        own = cells.get((own_expert.get(language, ""), language))
        for i, expert in enumerate(rows):
            cell = cells.get((expert, language))
            if cell is None:
                continue
            rate, drawn = cell.rate(measure), _draws(cell, draws, seed)
            table["rate"][i][j] = rate
            table["rate_interval"][i][j] = interval(scale * drawn)
            if base is None or of_base is None or base.errors.sum() == 0:
                continue
            of = base.rate(measure)
            table["gain"][i][j] = 100 * (of - rate) / of
            table["gain_interval"][i][j] = _gain_interval(of_base, drawn)
            if own is not None and of > own.rate(measure):
                table["recovered"][i][j] = 100 * (of - rate) / (of - own.rate(measure))
    counts = [
        max(len(c.errors) for (_, code), c in cells.items() if code == lang) for lang in columns
    ]
    return {"rows": rows, "columns": columns, "utterances": counts, **table}


def _draws(cell: Cell, draws: int, seed: int) -> np.ndarray:
    return np.asarray(bootstrap_rates(cell.errors, cell.lengths, draws, seed))


def _gain_interval(base: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Interval of the gain in percent; draws in which the base errs nowhere say nothing."""
    known = base > 0
    if not known.any():
        return float("nan"), float("nan")
    return interval(100 * (base[known] - other[known]) / base[known])


def family_contrast(
    gains: np.ndarray, experts: Sequence[str], languages: Sequence[str], family: Mapping[str, int]
) -> dict[str, Any]:
    """Compare gains within a family with those across, of experts on languages not their own.

    Args:
        gains: ``(experts, languages)``, NaN where not known.
        experts: Language of each row.
        languages: Of each column.
        family: Number by language.

    Returns:
        ``within`` and ``across`` (means), their ``pairs``, the ``difference``, and the one-sided
        ``p`` of permuting the languages' families with the ``smallest_p`` that there can be.

    Raises:
        UserError: Where either kind of pair is missing, or there are more than 8 languages.
    """
    names = list(dict.fromkeys([*experts, *languages]))
    if len(names) > 8:
        # 9! orders would take minutes; so many languages deserve a sampled test.
        raise UserError(f"{len(names)} languages have too many orders to try them all: at most 8")

    def split(home: Mapping[str, int]) -> tuple[list[float], list[float]]:
        within: list[float] = []
        across: list[float] = []
        for i, a in enumerate(experts):
            for j, b in enumerate(languages):
                if a != b and not np.isnan(gains[i, j]):
                    (within if home[a] == home[b] else across).append(float(gains[i, j]))
        return within, across

    within, across = split(family)
    if not within or not across:
        raise UserError("there are no pairs of languages both within a family and across")
    difference = float(np.mean(within) - np.mean(across))
    found = []
    for order in permutations(names):
        parts = split({name: family[other] for name, other in zip(names, order, strict=True)})
        if all(parts):
            found.append(float(np.mean(parts[0]) - np.mean(parts[1])))
    drawn = np.array(found)
    return {
        "within": float(np.mean(within)),
        "across": float(np.mean(across)),
        "pairs": {"within": len(within), "across": len(across)},
        "difference": difference,
        "p": float((drawn >= difference - 1e-9).mean()),
        "smallest_p": float((drawn >= drawn.max() - 1e-9).mean()),
        "permutations": len(drawn),
    }


ABOUT = About(
    name="transfer",
    title="Transfer between languages",
    what="What does an expert of one language do for another, and is it kinship that helps?",
    method=(
        "Every utterance with every single expert and with the base alone; which language the "
        "decoder's prompt names is told in the options. Gain: how much lower than the base's the "
        "rate is, in percent of it. Recovered: in percent of what the language's own expert "
        "gains. Families: mean gain of experts on other languages of their family against that on "
        "other families' languages, "
        "tested one-sided by permuting which language is in which (with few languages the "
        "smallest possible p is large). Intervals: 95 %, bootstrap over utterances, paired "
        "with the base. Few-shot: trainings on parts of a language's data, from another "
        "language's expert and from scratch; the gain with the same data, and the hours needed "
        "after transfer to reach the WER of one from scratch, by interpolation in the logarithm "
        "of hours; where the smallest training reaches it, they are an upper bound (≤), and the "
        "factor a lower one (≥); no factor where less data from scratch did as well. All "
        "trainings have the same, small number of steps, and those of the expert that one starts "
        "from, and its data, are not counted: what is saved is data and steps, and how much of "
        "either is not told apart. One training each: another seed would tell somewhat else, "
        "which the intervals do not know."
    ),
    sources=SOURCES,
    units={
        "wer": "percent",
        "loss": "nats a token, teacher-forced",
        "gain": "percent of the base's rate",
        "recovered": "percent of the own expert's gain",
        "hours": "hours of speech",
    },
)


def transfer(
    cells: Mapping[str, Cells],
    languages: Mapping[str, Sequence[str]],
    tree: str | Path | None = None,
    curves: Curves | None = None,
    prompts: str = "that is spoken",
    missing: Mapping[str, str] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Analysis:
    """Describe what every expert does for every language.

    Args:
        cells: By measure.
        languages: Of every expert.
        tree: YAML of language families.
        curves: Learning curves, see :func:`espnet_moe.analysis.curves.read_curves`.
        prompts: What the decoder was told, for the record.
        missing: What could not be had.
        draws: Of the bootstrap.
        seed: Of the draws.
    """
    not_available = dict(missing or {})
    own_expert: dict[str, str] = {}
    for expert, codes in languages.items():
        if len(codes) == 1:
            own_expert.setdefault(codes[0], expert)
    tables, contrasts = {}, {}
    for measure, own in cells.items():
        table = transfer_table(own, measure, own_expert, draws, seed)
        tables[measure] = table
        try:
            if tree is None:
                raise UserError("no family tree was given (--families)")
            contrasts[measure] = _contrast(table, languages, tree)
        except UserError as error:
            not_available[f"families of {measure}"] = str(error)
    if WER not in tables:
        not_available[WER] = "not asked for (--wer true decodes every language with every expert)"
    few_shot = {}
    for language, by_start in (curves or {}).items():
        try:
            few_shot[language] = compare_starts(by_start)
        except UserError as error:
            not_available[f"few_shot of {language}"] = str(error)
    if not curves:
        not_available["few_shot"] = (
            "no learning curves were given (--curves); where conf/grid.yaml has the grid transfer, "
            "./grid.sh --grid transfer trains for them, and then stage 12 reads them"
        )
    return Analysis(
        ABOUT,
        results={
            "tables": tables,
            "families": contrasts,
            "curves": told(curves or {}),
            "few_shot": few_shot,
        },
        options={"prompt": f"the language {prompts}", "draws": draws, "seed": seed},
        not_available=not_available,
    )


def _contrast(
    table: Mapping[str, Any], languages: Mapping[str, Sequence[str]], tree: str | Path
) -> dict[str, Any]:
    rows = [i for i, name in enumerate(table["rows"]) if name != BASE]
    several = [table["rows"][i] for i in rows if len(languages.get(table["rows"][i], ())) != 1]
    if several:
        raise UserError(f"expert(s) {', '.join(several)} are not of one language each")
    own = [languages[table["rows"][i]][0] for i in rows]
    names = list(dict.fromkeys([*own, *table["columns"]]))
    family = dict(zip(names, family_of(load_families(tree), names), strict=True))
    gains = np.array([table["gain"][i] for i in rows], dtype=float)
    return family_contrast(gains, own, table["columns"], family)
