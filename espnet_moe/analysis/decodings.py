"""DecodedSets test sets, aligned word by word with their references."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_moe.errors import UserError
from espnet_moe.scoring.error_rates import Alignment, EditCounts, count_edits
from espnet_moe.scoring.folders import References, read_decoded, read_references
from espnet_moe.scoring.results import read_results
from espnet_moe.scoring.systems import is_plain


@dataclass(frozen=True)
class Decoding:
    """What a system made of a test set; one row an utterance, in the set's order.

    Attributes:
        system: Its name.
        references: Of the set.
        hypotheses: Normalised.
        counts: Word edits against the set's ``text``; alternatives are left aside, so that all
            systems have one reference.
        alignments: Likewise.
    """

    system: str
    references: References
    hypotheses: tuple[str, ...]
    counts: EditCounts
    alignments: tuple[Alignment, ...]

    @property
    def set(self) -> str:
        """Name of the test set."""
        return self.references.name


@dataclass(frozen=True)
class DecodedSets:
    """Which decodings of an experiment to read.

    Attributes:
        exp: Experiment folder.
        data: Folder of the data dirs, such as ``dump/raw``.
        inference_tag: Decode folder of each system.
        systems: Of them, in the order shown; all that ``results.json`` tells of where empty.
        sets: Likewise; the sets of one language where empty.
    """

    exp: Path
    data: Path
    inference_tag: str
    systems: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()

    def named(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Systems and sets, asked for or found.

        Raises:
            UserError: Where there are none.
        """
        if self.systems and self.sets:
            return self.systems, self.sets
        rows = [
            row
            for row in read_results(self.exp)["rows"]
            if row["inference_tag"] == self.inference_tag and is_plain(row)
        ]
        systems = self.systems or tuple(dict.fromkeys(row["system"] for row in rows))
        sets = self.sets or tuple(
            dict.fromkeys(row["set"] for row in rows if row["system"] in systems)
        )
        if not systems or not sets:
            raise UserError(
                f"{self.exp / 'results.json'} tells of no set of one language decoded as "
                f"'{self.inference_tag}': decode and score first, or give another --inference_tag"
            )
        return systems, sets

    def read(self) -> tuple[list[Decoding], dict[str, str]]:
        """Read and align.

        Returns:
            The decodings, and the reason for each that could not be read.

        Raises:
            UserError: Where none could be read.
        """
        systems, sets = self.named()
        found, missing = [], dict[str, str]()
        for name in sets:
            try:
                references = read_references(self.data / name)
            except UserError as error:
                missing[name] = str(error)
                continue
            for system in systems:
                try:
                    decoded = read_decoded(self.exp / system / self.inference_tag, references)
                except UserError as error:
                    missing[f"{system} on {name}"] = str(error)
                    continue
                counts, alignments = count_edits(references.texts, decoded.hypotheses, "word")
                found.append(
                    Decoding(system, references, decoded.hypotheses, counts, tuple(alignments))
                )
        if not found:
            raise UserError("nothing to analyse: " + "; ".join(dict.fromkeys(missing.values())))
        return found, missing


def sets_with_alternatives(decodings: Sequence[Decoding]) -> list[str]:
    """Sets of which some utterances have other right texts, which are not looked at here."""
    names = {d.set for d in decodings if any(d.references.alternatives)}
    return sorted(names)
