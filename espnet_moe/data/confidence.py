"""Training utterances whose transcript the baseline does not believe: left out, or weighed less.

A transcript that does not belong to its audio, or only in part, teaches an expert the wrong thing.
Where the backbone alone gets far from it, it is suspect; on a language that the backbone hardly
knows it is not, so look at the counts in the log before choosing a threshold.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jiwer

from espnet_moe.config import ConfigError
from espnet_moe.data.datadir import DataDir, DataDirError, load_datadir, write_datadir
from espnet_moe.data.files import listed, read_lines
from espnet_moe.data.normalize import normalize
from espnet_moe.data.utterance import SAMPLE_RATE, is_test

MODES = ("drop", "weight")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilterOptions:
    """What becomes of utterances that the baseline does not believe.

    Attributes:
        max_cer: Percent; an utterance above it is dropped. For ``drop`` only.
        mode: ``drop``, or ``weight``: the utterance weighs ``1 - CER``, clipped to ``floor`` … 1.
        floor: Least weight, for ``weight`` only.
    """

    max_cer: float = 60.0
    mode: str = "drop"
    floor: float = 0.1

    def __post_init__(self) -> None:
        problems = []
        if not self.max_cer >= 0:
            problems.append(f"max_cer is a percentage from 0 on, not {self.max_cer}")
        if self.mode not in MODES:
            problems.append(f"mode is one of {', '.join(MODES)}, not '{self.mode}'")
        if not 0 < self.floor <= 1:
            problems.append(f"floor is above 0 and at most 1, not {self.floor}")
        if problems:
            raise ConfigError(f"filtering: {'; '.join(problems)}")


@dataclass(frozen=True)
class FilterSummary:
    """What became of a set.

    Attributes:
        kept: Number of utterances.
        dropped: CER in percent by id of each utterance left out.
        cer: In percent, by id of every utterance there was.
    """

    kept: int
    dropped: Mapping[str, float]
    cer: Mapping[str, float]


def filter_utterances(
    source: str | Path, hypotheses: str | Path, target: str | Path, options: FilterOptions
) -> FilterSummary:
    """Write a data directory without utterances of high CER, or with weights (utt2weight).

    Args:
        source: Training or development set.
        hypotheses: The baseline's text of this set, ``utt_id words …``.
        target: The data directory to write.
        options: Drop or weigh, and where.

    Returns:
        Counts and rates.

    Raises:
        DataDirError: For test sets, hypotheses that are missing or extra, a target that is the
            source, and a threshold that leaves nothing.
        LanguageError: When a language has no normaliser.
    """
    source, hypotheses, target = Path(source), Path(hypotheses), Path(target)
    for path in (source, target):
        if is_test(path.name):
            raise DataDirError(
                f"{path} is a test set, and what a system is tested on is not to be chosen by how "
                "well it does there; filter training sets only"
            )
    if source.resolve() == target.resolve():
        raise DataDirError(f"{source} is both what to filter and where to write it")
    data = load_datadir(source)
    cer = character_error_rates(data, _read_hypotheses(hypotheses, data))
    if options.mode == "weight":
        return _weigh(data, cer, target, options.floor)
    return _drop(data, cer, target, options.max_cer, source)


def character_error_rates(data: DataDir, hypotheses: Mapping[str, str]) -> dict[str, float]:
    """Rate of each utterance, in percent of the transcript's characters, both sides normalised.

    Args:
        data: The transcripts.
        hypotheses: By utterance id, of every utterance.

    Returns:
        By utterance id. Where a transcript has no character: 0 for an empty hypothesis, else 100.
    """
    rates = {}
    for utt in data.utterances:
        reference = normalize(utt.text, utt.language)
        hypothesis = normalize(hypotheses[utt.utt_id], utt.language)
        if reference:
            rates[utt.utt_id] = 100 * jiwer.cer(reference, hypothesis)
        else:
            rates[utt.utt_id] = 100.0 if hypothesis else 0.0
    return rates


def _read_hypotheses(path: Path, data: DataDir) -> dict[str, str]:
    texts: dict[str, str] = {}
    problems = []
    for number, line in read_lines(path):
        key, *rest = line.split(maxsplit=1)
        if key in texts:
            problems.append(f"line {number}: {key} is there more than once")
        texts[key] = rest[0] if rest else ""
    ids = {utt.utt_id for utt in data.utterances}
    for keys, what in (
        (ids - texts.keys(), "utterances have no hypothesis"),
        (texts.keys() - ids, "hypotheses are of no utterance of the set"),
    ):
        if keys:
            problems.append(f"{len(keys)} {what}: {listed(sorted(keys), ', ')}")
    if problems:
        raise DataDirError(
            f"{path} is not a decoding of this set; decode it again with the baseline:\n  "
            f"{listed(problems)}"
        )
    return texts


def _drop(
    data: DataDir, cer: Mapping[str, float], target: Path, max_cer: float, source: Path
) -> FilterSummary:
    dropped = {key: rate for key, rate in cer.items() if rate > max_cer}
    kept = [utt for utt in data.utterances if utt.utt_id not in dropped]
    if not kept:
        best = f"; the best has {min(cer.values()):.1f} %" if cer else ""
        raise DataDirError(
            f"no utterance of {source} has a CER of {max_cer:g} % or less{best}: raise max_cer, or "
            "use the mode weight"
        )
    ids = {utt.utt_id for utt in kept}
    reasons = {key: f"baseline CER {rate:.1f} % > {max_cer:g} %" for key, rate in dropped.items()}
    write_datadir(
        target,
        kept,
        num_samples={key: value for key, value in data.num_samples.items() if key in ids},
        raw_text={key: value for key, value in data.raw_text.items() if key in ids},
        skipped={**data.skipped, **reasons},
        extras=data,
        corpora=data.corpora,
    )
    seconds = sum(data.num_samples.get(key, 0) for key in dropped) / SAMPLE_RATE
    logger.info(
        "%s: %d of %d utterances dropped (%.2f h), as the baseline's CER is above %g %%",
        target,
        len(dropped),
        len(cer),
        seconds / 3600,
        max_cer,
    )
    _log_languages(data, dropped)
    return FilterSummary(len(kept), dropped, cer)


def _weigh(data: DataDir, cer: Mapping[str, float], target: Path, floor: float) -> FilterSummary:
    weights = {
        key: data.weights.get(key, 1.0) * min(max(1 - rate / 100, floor), 1.0)
        for key, rate in cer.items()
    }
    if all(weight == 1 for weight in weights.values()):
        weights = {}
    write_datadir(
        target,
        data.utterances,
        num_samples=data.num_samples,
        raw_text=data.raw_text,
        skipped=data.skipped,
        extras=replace(data, weights=weights),
        corpora=data.corpora,
    )
    logger.info(
        "%s: %d utterances weigh %.3f on average, %d of them less than 0.5",
        target,
        len(cer),
        sum(weights.values()) / len(weights) if weights else 1.0,
        sum(weight < 0.5 for weight in weights.values()),
    )
    return FilterSummary(len(data.utterances), {}, cer)


def _log_languages(data: DataDir, dropped: Mapping[str, float]) -> None:
    for language in sorted({utt.language for utt in data.utterances}):
        own = [utt.utt_id for utt in data.utterances if utt.language == language]
        count = sum(key in dropped for key in own)
        logger.info("%s: %d of %d dropped", language, count, len(own))
        if count == len(own):
            logger.warning("nothing is left of %s: raise max_cer, or use the mode weight", language)
