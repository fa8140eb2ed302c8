"""Stage 1: a corpus on disk becomes one data directory a split, and a list of checks."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_moe.data.corpora.alignments import PHONE_ALIGNMENTS, read_alignments
from espnet_moe.data.corpora.checks import CorpusChecks, check_corpus, drop_bad_audio
from espnet_moe.data.corpora.commonvoice import (
    TrainFrom,
    find_locale,
    read_commonvoice,
    release_of,
)
from espnet_moe.data.corpora.indicvoices import read_indicvoices
from espnet_moe.data.corpora.kathbath import read_kathbath
from espnet_moe.data.corpora.layout import USUAL_SPLITS, CorpusError
from espnet_moe.data.corpora.mls import read_mls
from espnet_moe.data.corpora.shrutilipi import read_shrutilipi
from espnet_moe.data.datadir import write_datadir
from espnet_moe.data.extras import Extras
from espnet_moe.data.files import listed, write_text
from espnet_moe.data.sources import parse_source
from espnet_moe.data.utterance import Utterance

# What each is called where results tell what they were measured on.
NAMES = {
    "commonvoice": "Common Voice",
    "mls": "MLS",
    "kathbath": "Kathbath",
    "indicvoices": "IndicVoices",
    "shrutilipi": "Shrutilipi",
}
CORPORA = tuple(NAMES)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareOptions:
    """What to read and how to treat bad files.

    Attributes:
        corpus: One of ``CORPORA``.
        root: Folder of the corpus; the readers' modules draw what is expected in it.
        language: ISO 639-1 code.
        splits: Splits to read; each reader says which there are.
        handles: MLS only: limited supervision, ``9hr`` or ``1hr/0`` … ``1hr/5``.
        train_from: Common Voice only: ``train``, or ``validated`` without what dev and test hold.
        release: Common Voice only: which one, where the root holds several: ``26.0`` or
            ``26.0-2026-06-12``.
        allow_bad_test_audio: Leave bad files out of test sets too, instead of an error.
        probe_audio: Decode every file (slow; formatting does so later anyway).
    """

    corpus: str
    root: str
    language: str
    splits: Sequence[str] = USUAL_SPLITS
    handles: str | None = None
    train_from: TrainFrom = "train"
    release: str | None = None
    allow_bad_test_audio: bool = False
    probe_audio: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.corpus not in CORPORA:
            problems.append(f"no corpus '{self.corpus}'; legal are {', '.join(CORPORA)}")
        if self.handles is not None and self.corpus != "mls":
            problems.append(f"handles are there for mls only, not for {self.corpus}")
        if self.train_from != "train" and self.corpus != "commonvoice":
            problems.append(f"train_from {self.train_from} is there for commonvoice only")
        if self.release is not None and self.corpus != "commonvoice":
            problems.append(f"releases are there for commonvoice only, not for {self.corpus}")
        if problems:
            raise CorpusError("; ".join(problems))


def prepare_corpus(options: PrepareOptions, out: str | Path) -> CorpusChecks:
    """Read and check a corpus, then write ``<out>_<split>`` and ``<out>_checks.json``.

    Where times of words or phones lie beside the corpus (``corpora.alignments``), the sets get a
    ``words.ctm`` or ``phones.ctm``.
    Their ``corpus`` names the corpus, and the release of Common Voice where a folder's name tells
    it, such as ``Common Voice 26.0-2026-06-12``.

    Args:
        options: What to read.
        out: Path and beginning of the names, such as ``data/commonvoice_hi``.

    Raises:
        CorpusError: When the corpus is not as its reader expects, or a test set has bad audio and
            that is not allowed. Nothing is written then.
    """
    utterances = read_corpus(options)
    if not utterances:
        raise CorpusError(f"{options.root} holds no utterance of {options.language}")
    repeated = [key for key, n in Counter(utt.utt_id for utt in utterances).items() if n > 1]
    if repeated:
        raise CorpusError(
            f"{len(repeated)} utterances of {options.root} are listed more than once, in one split "
            f"or in several; unpack the corpus again:\n  {listed(repeated)}"
        )
    checks = check_corpus(utterances, options.probe_audio)
    checks.log()
    extras = Extras(
        timings=read_alignments(options.root, utterances),
        phones=read_alignments(options.root, utterances, PHONE_ALIGNMENTS),
    )
    release = None
    if options.corpus == "commonvoice":
        release = release_of(find_locale(options.root, options.language, options.release))
    name = NAMES[options.corpus] + (f" {release}" if release else "")
    if options.corpus == "kathbath" and parse_source(utterances[0].audio).row is not None:
        name += " of the hub"  # whose test set is not the published one
    kept = drop_bad_audio(utterances, checks, options.allow_bad_test_audio)
    for split in dict.fromkeys(utt.split for utt in utterances):
        skipped = {
            utt.utt_id: checks.bad_audio[utt.utt_id]
            for utt in utterances
            if utt.split == split and utt.utt_id in checks.bad_audio
        }
        path = Path(f"{out}_{split}")
        members = (utt for utt in kept if utt.split == split)
        write_datadir(path, members, skipped=skipped, extras=extras, corpora=[name])
        count = checks.utterances[split] - len(skipped)
        logger.info("%s: %d utterances, %d skipped", path, count, len(skipped))
    facts = {"corpus": options.corpus, "language": options.language, "root": str(options.root)}
    if options.corpus == "commonvoice":
        facts["release"] = release or "unknown"
    write_text(Path(f"{out}_checks.json"), checks.to_json(**facts))
    return checks


def read_corpus(options: PrepareOptions) -> list[Utterance]:
    """Read a corpus with the reader that ``options.corpus`` names."""
    where = options.root, options.language, options.splits
    if options.corpus == "commonvoice":
        return read_commonvoice(*where, options.train_from, options.release)
    if options.corpus == "mls":
        return read_mls(*where, options.handles)
    readers = {
        "kathbath": read_kathbath,
        "indicvoices": read_indicvoices,
        "shrutilipi": read_shrutilipi,
    }
    return readers[options.corpus](*where)
