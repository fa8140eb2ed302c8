"""Stage 3: several data directories become one."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.data.datadir import (
    DataDir,
    DataDirError,
    load_datadir,
    validate_datadir,
    write_datadir,
)
from espnet_moe.data.extras import join_extras
from espnet_moe.data.files import listed


def combine_datadirs(sources: Sequence[str | Path], target: str | Path) -> DataDir:
    """Write the utterances of all sources into one data directory; audio stays where it is.

    Args:
        sources: Data directories, either all formatted or none.
        target: The data directory to write; none of the sources.

    Returns:
        What was written, skipped utterances of all sources included.

    Raises:
        DataDirError: When there is no source, one cannot be read, formatted and unformatted ones
            are mixed, an utterance id is in more than one, some have utt2experts and others have
            none, or what was written is not valid (audio that is gone, for one).
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
    extras = join_extras([(part, [utt.utt_id for utt in part.utterances]) for part in parts])
    combined = DataDir(
        utterances=tuple(utt for part in parts for utt in part.utterances),
        num_samples={key: value for part in parts for key, value in part.num_samples.items()},
        raw_text={key: value for part in parts for key, value in part.raw_text.items()},
        # What one set skipped, another may hold.
        skipped={
            key: value for part in parts for key, value in part.skipped.items() if key not in counts
        },
        **vars(extras),
    )
    write_datadir(
        target,
        combined.utterances,
        num_samples=combined.num_samples,
        raw_text=combined.raw_text,
        skipped=combined.skipped,
        extras=combined,
    )
    validate_datadir(target)
    return combined


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
