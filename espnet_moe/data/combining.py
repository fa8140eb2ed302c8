"""Stage 3: several data directories become one."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from espnet_moe.data.datadir import (
    DataDir,
    DataDirError,
    corpora_of,
    load_datadir,
    validate_datadir,
    write_datadir,
)
from espnet_moe.data.extras import join_extras
from espnet_moe.data.files import listed
from espnet_moe.data.mixing import MixOptions, choose
from espnet_moe.data.utterance import SAMPLE_RATE

NEARLY_NOTHING = 0.1  # of a source


def combine_datadirs(
    sources: Sequence[str | Path],
    target: str | Path,
    mix: MixOptions | None = None,
) -> DataDir:
    """Write the utterances of all sources into one data directory; audio stays where it is.

    Args:
        sources: Data directories, either all formatted or none.
        target: The data directory to write; none of the sources.
        mix: How much of each source; ``None``: all of them.

    Returns:
        What was written, skipped utterances of all sources included.

    Raises:
        DataDirError: When there is no source, one cannot be read, formatted and unformatted ones
            are mixed, an utterance id is in more than one, some have utt2experts and others have
            none, what was written is not valid (audio that is gone, for one), or a mixture is
            asked for that these sources cannot make.
    """
    if not sources:
        raise DataDirError("no data directory to combine is given")
    if Path(target).resolve() in {Path(source).resolve() for source in sources}:
        raise DataDirError(f"{target} is a source as well; write the combined set elsewhere")
    parts = [load_datadir(source) for source in sources]
    _check_alike(sources, parts)
    counts = Counter(utt.utt_id for part in parts for utt in part.utterances)
    if repeated := [key for key, count in counts.items() if count > 1]:
        raise DataDirError(
            f"{len(repeated)} utterance ids are in more than one of "
            f"{', '.join(map(str, sources))}; give each set once:\n  {listed(sorted(repeated))}"
        )
    chosen = _chosen(parts, mix)
    if mix is not None:
        for source, part, of_part in zip(sources, parts, chosen, strict=True):
            _log_share(source, part, of_part)
    parts = [_part_of(part, of_part) for part, of_part in zip(parts, chosen, strict=True)]
    extras = join_extras([(part, [utt.utt_id for utt in part.utterances]) for part in parts])
    combined = DataDir(
        utterances=tuple(utt for part in parts for utt in part.utterances),
        num_samples={key: value for part in parts for key, value in part.num_samples.items()},
        raw_text={key: value for part in parts for key, value in part.raw_text.items()},
        # What one set skipped, another may hold.
        skipped={
            key: value for part in parts for key, value in part.skipped.items() if key not in counts
        },
        corpora=corpora_of(parts),
        **vars(extras),
    )
    write_datadir(
        target,
        combined.utterances,
        num_samples=combined.num_samples,
        raw_text=combined.raw_text,
        skipped=combined.skipped,
        extras=combined,
        corpora=combined.corpora,
    )
    validate_datadir(target)
    return combined


def _chosen(parts: Sequence[DataDir], mix: MixOptions | None) -> list[dict[str, int]]:
    """How often each utterance of each part is taken."""
    if mix is None:
        return [{utt.utt_id: 1 for utt in part.utterances} for part in parts]
    if any(utt.utt_id not in part.num_samples for part in parts for utt in part.utterances):
        raise DataDirError("hours can be counted in formatted sets only; run format_audio on them")
    return choose([{u.utt_id: p.num_samples[u.utt_id] for u in p.utterances} for p in parts], mix)


def _log_share(source: str | Path, part: DataDir, chosen: dict[str, int]) -> None:
    """Say what a part gives of what it has; a warning where it gives nearly nothing."""
    there = sum(part.num_samples.values()) / SAMPLE_RATE / 3600
    taken = sum(part.num_samples[key] * n for key, n in chosen.items()) / SAMPLE_RATE / 3600
    level = logging.WARNING if chosen and taken < NEARLY_NOTHING * there else logging.INFO
    logging.log(
        level,
        "%s gives %.2f h of its %.2f h (%d of %d utterances, the most frequent %d times)",
        source,
        taken,
        there,
        len(chosen),
        len(part.utterances),
        max(chosen.values(), default=0),
    )


def _named(chosen: dict[str, int]) -> dict[str, str]:
    """New ids of what is taken, with the old ones; a repeated utterance has an id of its own."""
    return {
        key if copy == 0 else f"{key}_copy{copy}": key
        for key, count in chosen.items()
        for copy in range(count)
    }


def _part_of(part: DataDir, chosen: dict[str, int]) -> DataDir:
    """What is taken of a part."""
    names = _named(chosen)
    of = {utt.utt_id: utt for utt in part.utterances}
    tables = {
        field.name: getattr(part, field.name)
        for field in fields(DataDir)
        if field.name not in ("utterances", "skipped", "corpora")
    }
    return DataDir(
        utterances=tuple(replace(of[old], utt_id=new) for new, old in names.items()),
        skipped=part.skipped,
        corpora=part.corpora,
        **{
            name: {new: table[old] for new, old in names.items() if old in table}
            for name, table in tables.items()
        },
    )


def _check_alike(sources: Sequence[str | Path], parts: Sequence[DataDir]) -> None:
    for name in ("num_samples", "raw_text"):
        lacking = [
            str(source)
            for source, part in zip(sources, parts, strict=True)
            if part.utterances and not getattr(part, name)
        ]
        if 0 < len(lacking) < len(parts):
            raise DataDirError(
                f"{', '.join(lacking)} are not formatted while the others are; run format_audio "
                "on them first"
            )
