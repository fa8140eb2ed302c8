"""Pictures of the results: WER by system, confusion and calibration of the routers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from espnet_moe.report.drawing import save_figure
from espnet_moe.report.summary import Row, labels
from espnet_moe.scoring.systems import is_plain

_SHOWN = 4  # systems in a picture of decisions


def write_figures(exp: Path, results: Row) -> list[Path]:
    """Draw ``images/{wer_by_system,confusion,calibration}.png``, those that there is data for.

    Args:
        exp: The experiment folder.
        results: The content of its ``results.json``.

    Returns:
        The files written; none where matplotlib is not installed.
    """
    routed = _routed(results)
    calibrated = [row for row in routed if row["ece"] is not None]
    wanted: dict[str, Callable[[Any], None]] = {}
    if any(is_plain(row) and row["wer"] is not None for row in results["rows"]):
        wanted["wer_by_system"] = lambda figure: _wer_by_system(figure, results)
    if routed:
        wanted["confusion"] = lambda figure: _confusion(figure, routed)
    if calibrated:
        wanted["calibration"] = lambda figure: _calibration(figure, calibrated)
    written = []
    for name, draw in wanted.items():
        written += save_figure(exp / "images" / name, draw, ["png"])
    return written


def _routed(results: Row) -> list[Row]:
    """Return the decisions over all sets, of a few systems that differ in them."""
    pooled: dict[tuple[str, str], Row] = {}
    for row in results.get("routing") or []:
        key = (row["system"], row["inference_tag"])
        if key not in pooled or row["set"] == "all":
            pooled[key] = row
    different: list[Row] = []
    for row in pooled.values():
        if all(row["confusion"] != other["confusion"] for other in different):
            different.append(row)
    return different[:_SHOWN]


def _wer_by_system(figure: Any, results: Row) -> None:
    rows = [row for row in results["rows"] if is_plain(row) and row["wer"] is not None]
    names = list(dict.fromkeys(labels(rows)))
    columns = list(dict.fromkeys((row["set"], row["language"]) for row in rows))
    table = {
        (label, row["set"], row["language"]): row
        for label, row in zip(labels(rows), rows, strict=True)
    }
    figure.set_size_inches(max(6.0, 1.1 * len(columns) * (1 + 0.18 * len(names))), 4)
    axes = figure.add_subplot()
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        own = [(place, table.get((name, *column))) for place, column in enumerate(columns)]
        present = [(place, row) for place, row in own if row is not None]
        wers = [row["wer"] for _, row in present]
        errors = [
            [max(0.0, row["wer"] - row["wer_ci"][0]) for _, row in present],
            [max(0.0, row["wer_ci"][1] - row["wer"]) for _, row in present],
        ]
        places = [place + (number - (len(names) - 1) / 2) * width for place, _ in present]
        axes.bar(places, wers, width, yerr=errors, label=name, error_kw={"elinewidth": 0.8})
    several = len({language for _, language in columns}) < len(columns)
    axes.set_xticks(
        range(len(columns)), [f"{s} ({lang})" if several else lang for s, lang in columns]
    )
    axes.set_ylabel("WER, % (95 % interval)")
    axes.legend(fontsize="small", ncols=2)


def _confusion(figure: Any, rows: Sequence[Row]) -> None:
    figure.set_size_inches(3.4 * len(rows), 3.9)
    for axes, row, label in zip(_side_by_side(figure, rows), rows, labels(rows), strict=True):
        confusion = row["confusion"]
        shares = [
            [count / max(1, sum(counts)) for count in counts] for counts in confusion["counts"]
        ]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for y, counts in enumerate(confusion["counts"]):
            for x, count in enumerate(counts):
                colour = "white" if shares[y][x] > 0.5 else "black"
                axes.text(x, y, str(count), ha="center", va="center", color=colour)
        axes.set_xticks(
            range(len(confusion["decided"])), [name or "none" for name in confusion["decided"]]
        )
        axes.set_yticks(range(len(confusion["languages"])), confusion["languages"])
        axes.set(xlabel="decided", ylabel="spoken", title=f"{label}: {row['accuracy']} %")


def _calibration(figure: Any, rows: Sequence[Row]) -> None:
    figure.set_size_inches(3.4 * len(rows), 3.9)
    for axes, row, label in zip(_side_by_side(figure, rows), rows, labels(rows), strict=True):
        bins = row["calibration"]
        filled = [n for n, count in enumerate(bins["count"]) if count]
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
        axes.plot(
            [bins["confidence"][n] for n in filled], [bins["accuracy"][n] for n in filled], "o-"
        )
        axes.set(
            xlim=(0, 1.02),
            ylim=(0, 1.02),
            xlabel="highest probability",
            ylabel="share that is right",
            title=f"{label}: ECE {row['ece']:.3f}",
        )


def _side_by_side(figure: Any, rows: Sequence[Row]) -> list[Any]:
    return list(figure.subplots(1, len(rows), squeeze=False)[0])
