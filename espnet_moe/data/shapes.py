"""Stage 4: the lengths that ESPnet's batch samplers sort by, and what a set amounts to."""

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from espnet_moe.data.datadir import DataDirError, load_datadir
from espnet_moe.data.files import write_table, write_text
from espnet_moe.data.normalize import NORMALIZER
from espnet_moe.data.utterance import SAMPLE_RATE, Seconds


@dataclass(frozen=True)
class SetStats:
    """What a set amounts to.

    Attributes:
        utterances: Count.
        skipped: Count of utterances lost on the way to the set.
        hours: Of audio.
        speakers: Count.
        speakers_by_gender: Count by ``m``, ``f``, ``unknown``.
        words: Count, by white space.
        characters: Count, without spaces between words.
        distinct_words: Count.
        distinct_sentences: Count.
        duration_min: Seconds.
        duration_mean: Seconds.
        duration_max: Seconds.
        hours_by_language: By ISO 639-1 code.
        utterances_by_language: By ISO 639-1 code.
        normalizer: Name and version of the text normaliser.
    """

    utterances: int
    skipped: int
    hours: float
    speakers: int
    speakers_by_gender: dict[str, int]
    words: int
    characters: int
    distinct_words: int
    distinct_sentences: int
    duration_min: Seconds
    duration_mean: Seconds
    duration_max: Seconds
    hours_by_language: dict[str, float]
    utterances_by_language: dict[str, int]
    normalizer: str = NORMALIZER


def collect_shapes(source: str | Path, target: str | Path) -> SetStats:
    """Write ``speech_shape``, ``text_shape`` and ``stats.json`` of a formatted data directory.

    ``speech_shape`` has lines ``utt_id samples``, ``text_shape`` lines ``utt_id characters``.

    Args:
        source: A formatted data directory.
        target: Folder to write into.

    Raises:
        DataDirError: When the data directory cannot be read, is not formatted, or is empty.
    """
    source, target = Path(source), Path(target)
    data = load_datadir(source)
    if not data.utterances:
        raise DataDirError(f"{source} holds no utterance")
    if not data.num_samples:
        raise DataDirError(f"{source} has no utt2num_samples; run format_audio on it first")
    seconds = {key: samples / SAMPLE_RATE for key, samples in data.num_samples.items()}
    hours: dict[str, float] = defaultdict(float)
    for utt in data.utterances:
        hours[utt.language] += seconds[utt.utt_id] / 3600
    genders = {utt.speaker: utt.gender or "unknown" for utt in data.utterances}
    words = Counter(word for utt in data.utterances for word in utt.text.split())
    stats = SetStats(
        utterances=len(data.utterances),
        skipped=len(data.skipped),
        hours=round(sum(seconds.values()) / 3600, 4),
        speakers=len(genders),
        speakers_by_gender=dict(sorted(Counter(genders.values()).items())),
        words=words.total(),
        characters=sum(len(word) * count for word, count in words.items()),
        distinct_words=len(words),
        distinct_sentences=len({utt.text for utt in data.utterances}),
        duration_min=round(min(seconds.values()), 3),
        duration_mean=round(sum(seconds.values()) / len(seconds), 3),
        duration_max=round(max(seconds.values()), 3),
        hours_by_language={key: round(value, 4) for key, value in sorted(hours.items())},
        utterances_by_language=dict(sorted(Counter(u.language for u in data.utterances).items())),
    )
    target.mkdir(parents=True, exist_ok=True)
    write_table(target / "speech_shape", data.num_samples)
    write_table(target / "text_shape", {utt.utt_id: len(utt.text) for utt in data.utterances})
    write_text(
        target / "stats.json", json.dumps(asdict(stats), ensure_ascii=False, indent=2) + "\n"
    )
    return stats
