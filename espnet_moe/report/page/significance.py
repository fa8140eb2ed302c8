"""The section on differences: which are more than chance, and which are not, in words."""

from collections.abc import Sequence

from espnet_moe.report.page.blocks import Heading, Lines, Section, Text
from espnet_moe.report.page.experiment import Experiment
from espnet_moe.report.page.tables import COUNTED, Cell, Column, PageTable, minus, number, words
from espnet_moe.report.summary import Row, labels
from espnet_moe.scoring.folders import ALL

_SETS_SHOWN = 12  # lines of a list that is not folded


def significance(found: Experiment) -> Section:
    """Paired comparisons of ``results.json``, and those of the analysis where there is one."""
    section = Section("significance", "Significance")
    lines = _compared(found) if found.rows else []
    if not lines:
        if found.rows:
            found.lacks("significance", "comparisons", "no system beside the baseline is scored")
        return section
    unsure = [line for line in lines if not line.sure]
    section.add(
        Text(
            "Systems are compared on the same utterances: the intervals are of the paired "
            "bootstrap, 95 %, of the difference in points of WER, the first less the second. They "
            f"are not adjusted for the number of comparisons: of {len(lines)}, about "
            f"{len(lines) / 20:.0f} would exclude 0 by chance if no two systems differed."
        ),
        Text(
            f"{len(lines) - len(unsure)} of {len(lines)} differences are significant. That one is "
            "not significant says that these utterances do not tell the systems apart, not that "
            "they are equal."
        ),
        Lines(
            tuple(line.words() for line in unsure),
            f"Not significant ({len(unsure)})",
            folded=len(unsure) > _SETS_SHOWN,
        ),
        PageTable(
            slug="significance",
            caption="Paired comparisons; the mean is over the sets of one language.",
            columns=(
                *(Column(title) for title in ("first", "second", "set")),
                *(Column("utterances", COUNTED), Column("difference, points")),
                Column("relative %", "the interval of the difference is beside it"),
                Column("significant"),
            ),
            rows=tuple(line.cells() for line in lines),
            shown=120,
        ),
    )
    _all_pairs(found, section)
    return section


class _Line:
    """A difference between two systems on a set."""

    def __init__(self, first: str, second: str, place: str, count: int | None, own: Row) -> None:
        self.first, self.second, self.place, self.count, self.own = first, second, place, count, own

    @property
    def sure(self) -> bool:
        return bool(self.own["significant"])

    def words(self) -> str:
        told = f"{self.first} against {self.second} on {self.place}: "
        told += _points(self.own["wer_diff"], self.own["wer_diff_ci"])
        return told if self.count is None else f"{told}, {self.count} utterances"

    def cells(self) -> tuple[Cell, ...]:
        return (
            *map(words, (self.first, self.second, self.place)),
            number(self.count, 0),
            number(self.own["wer_diff"], 2, self.own["wer_diff_ci"], self.count),
            number(self.own["wer_relative"], 1),
            words("yes" if self.sure else "no"),
        )


def _compared(found: Experiment) -> list[_Line]:
    lines = []
    rows, baseline = found.rows, found.results["baseline"]
    with_baseline = {_place(row) for row in rows if row["system"] == baseline}
    for row, name in zip(rows, labels(rows), strict=True):
        own = row.get("comparison")
        place = f"{row['set']} ({row['language']})"
        if own is not None:
            lines.append(_Line(name, own["baseline"], place, row["utterances"], own))
        elif _place(row) not in with_baseline:
            found.lacks("significance (in part)", place, f"{baseline} is not scored on it")
        elif row["system"] != baseline:
            why = "they were not scored on the same utterances and references"
            found.lacks("significance (in part)", f"{name} against {baseline} on {place}", why)
    averages = found.results.get("averages") or []
    for average, name in zip(averages, labels(averages), strict=True):
        if average["system"] == baseline:
            continue  # the oracle's line says the same the other way round
        for own in average["against"].values():
            lines.append(_Line(name, own["system"], "mean", None, own))
    for row in found.results.get("low_confidence") or []:
        place = "the least sure quarter"
        lines.append(_Line(row["soft"], row["hard"], place, row["utterances"], row["difference"]))
    return lines


def _points(difference: float, interval: Sequence[float]) -> str:
    """Write a difference in points of WER with its interval."""
    low, high = interval
    return minus(f"{difference:+.2f} points [{low:+.2f}, {high:+.2f}]")


def _place(row: Row) -> tuple[str, str, str]:
    return row["inference_tag"], row["set"], row["language"]


def _all_pairs(found: Experiment, section: Section) -> None:
    """What the analysis of that name says of every pair over all sets, adjusted for their number.

    Raises:
        KeyError: Where it is of another layout.
    """
    content = next((c for c in found.analyses if c["name"] == "significance"), None)
    if content is None:
        why = "comparisons of every pair, adjusted for their number: run bin.analyze significance"
        found.lacks("significance (in part)", "every pair", why)
        return
    rows: Sequence[Row] = content["results"]["rows"]
    pooled = [row for row in rows if row["set"] == ALL] or list(rows)
    unsure = [row for row in pooled if not row["mapsswe_significant"]]
    told = [
        f"{row['first']} against {row['second']} ({row['set']}): "
        f"{_points(row['difference'], row['interval'])}, "
        f"p = {row['mapsswe_p_holm']:.3g}, {row['utterances']} utterances"
        for row in unsure
    ]
    section.add(
        Heading("Every pair, adjusted", "significance-pairs"),
        Text(
            f"{len(pooled) - len(unsure)} of {len(pooled)} pairs differ significantly by the "
            "matched-pairs test on segments (MAPSSWE) after Holm's adjustment over "
            f"{content['results']['comparisons']} comparisons; the p below are adjusted, the "
            "intervals are not. The table is under Analysis."
        ),
        Lines(tuple(told), f"Not significant ({len(told)})", folded=len(told) > _SETS_SHOWN),
    )
