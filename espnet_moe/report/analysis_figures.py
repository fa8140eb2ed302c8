"""Pictures of analyses, drawn from what their JSON files say."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.report.drawing import save_figure
from espnet_moe.report.panels import SIDES, heat_maps, panels

Content = Mapping[str, Any]
Draw = Callable[[Any], None]


def write_analysis_figures(
    out: Path, content: Content, arrays: Mapping[str, np.ndarray]
) -> list[Path]:
    """Draw the pictures of one analysis: ``<out>/<name>_<picture>.{png,svg}``.

    Args:
        out: The folder of the analysis.
        content: Of its JSON.
        arrays: Of its npz, where it has one.

    Returns:
        The files written; none where there is nothing to draw, or matplotlib is not installed.
    """
    wanted = _PICTURES[content["name"]](content["results"], arrays)
    written = []
    for name, draw in wanted.items():
        written += save_figure(out / f"{content['name']}_{name}", draw)
    return written


def _similarity(results: Content, arrays: Mapping[str, np.ndarray]) -> dict[str, Draw]:
    wanted: dict[str, Draw] = {
        "cosine": partial(heat_maps, maps=[("cosine of updates", results["cosine"])], low=-1.0),
        "overlap": partial(
            heat_maps,
            maps=[
                (f"{what}: chance {results['overlap_chance'][what]:.3f}", results["overlap"][what])
                for what in ("written", "read")
            ],
        ),
    }
    if "cka" in results:
        maps = [
            (f"{name}: {own['frames']} frames", {**own["layers"][-1], "names": own["names"]})
            for name, own in results["cka"].items()
        ]
        wanted["cka"] = partial(heat_maps, maps=maps)
    if results["linkage"]:
        wanted["dendrogram"] = partial(_dendrograms, linkages=results["linkage"])
    return wanted


def _spectrum(results: Content, arrays: Mapping[str, np.ndarray]) -> dict[str, Draw]:
    return {
        "energy": partial(_energy, experts=results["experts"]),
        "effective_rank": partial(_effective_rank, experts=results["experts"]),
    }


def _significance(results: Content, arrays: Mapping[str, np.ndarray]) -> dict[str, Draw]:
    systems = list(results["systems"])
    maps = []
    for name in dict.fromkeys(row["set"] for row in results["rows"]):
        values: list[list[float | None]] = [[None] * len(systems) for _ in systems]
        marks = [["" for _ in systems] for _ in systems]
        for row in results["rows"]:
            if row["set"] == name:
                i, j = systems.index(row["first"]), systems.index(row["second"])
                values[i][j], values[j][i] = row["difference"], -row["difference"]
                marks[i][j] = marks[j][i] = "*" if row["mapsswe_significant"] else ""
        maps.append((f"{name}: WER of row less column", _map(systems, values, marks)))
    if not maps:
        return {}
    limit = max(abs(row["difference"]) for row in results["rows"]) or 1.0
    return {"differences": partial(heat_maps, maps=maps, low=-limit, high=limit, decimals=1)}


def _map(names: Sequence[str], values: Any, marks: Any) -> Content:
    return {"names": names, "values": values, "marks": marks}


def _layers(results: Content, arrays: Mapping[str, np.ndarray]) -> dict[str, Draw]:
    experts = results["experts"]
    if not experts:
        return {}
    groups = list(next(iter(experts.values()))["groups"])
    places = [g for g in groups if g.split(".")[0] in ("encoder", "decoder", "other")]
    kinds = [group for group in groups if group not in places]
    maps = [
        (
            f"share of the gain: {title}",
            {
                "rows": list(experts),
                "columns": kinds,
                "values": [
                    [own["groups"][k][what]["share"] for k in kinds] for own in experts.values()
                ],
            },
        )
        for what, title in (("off", "lost without"), ("alone", "reached alone"))
    ]
    return {
        "places": partial(_importance, experts=experts, groups=places),
        **({"kinds": partial(heat_maps, maps=maps)} if kinds else {}),
    }


def _importance(figure: Any, experts: Mapping[str, Content], groups: Sequence[str]) -> None:
    figure.set_size_inches(max(8.0, 1.1 * len(groups) * 2), 3.4)
    panels = (("off", "change", "loss when off: change"), ("alone", "gain", "gain when alone"))
    for axes, (what, key, title) in zip(figure.subplots(1, 2), panels, strict=True):
        width = 0.8 / len(experts)
        for number, (name, own) in enumerate(experts.items()):
            cells = [own["groups"][group][what] for group in groups]
            values = [cell[key] for cell in cells]
            ends = [
                [max(0.0, v - cell["interval"][0]) for v, cell in zip(values, cells, strict=True)],
                [max(0.0, cell["interval"][1] - v) for v, cell in zip(values, cells, strict=True)],
            ]
            places = [p + (number - (len(experts) - 1) / 2) * width for p in range(len(groups))]
            axes.bar(places, values, width, yerr=ends, label=name, error_kw={"elinewidth": 0.8})
        axes.set_xticks(range(len(groups)), groups, rotation=45, ha="right")
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(title=title, ylabel="nats a token (95 % interval)")
    axes.legend(fontsize="small")


def _errors(results: Content, arrays: Mapping[str, np.ndarray]) -> dict[str, Draw]:
    return {"kinds": partial(_error_kinds, results=results)} if results["rows"] else {}


def _error_kinds(figure: Any, results: Content) -> None:
    columns = list(dict.fromkeys((row["set"], row["language"]) for row in results["rows"]))
    places = panels(figure, len(columns), height=4.2)
    for axes, (name, language) in zip(places, columns, strict=True):
        rows = [r for r in results["rows"] if (r["set"], r["language"]) == (name, language)]
        base = np.zeros(len(rows))
        for number, category in enumerate(results["categories"]):
            rates = np.array([row["categories"][category]["rate"] or 0.0 for row in rows])
            colour = f"C{number}"
            axes.bar(range(len(rows)), rates, 0.8, base, label=category, color=colour)
            base += rates
        axes.set_xticks(range(len(rows)), [r["system"] for r in rows], rotation=60, ha="right")
        axes.set_title(f"{name} ({language})", fontsize="medium")
    places[0].set_ylabel("errors per 100 words")
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small")


def _routing(results: Content, arrays: Mapping[str, np.ndarray]) -> dict[str, Draw]:
    wanted: dict[str, Draw] = {}
    # Of all sets together, where there are several.
    whole = {system: list(sets.values())[-1] for system, sets in results["systems"].items()}
    if whole:
        maps = [
            (
                f"{system}: mean gate",
                {
                    "rows": list(own["languages"]),
                    "columns": own["experts"],
                    "values": [
                        [cell["mean"][name] for name in own["experts"]]
                        for cell in own["languages"].values()
                    ],
                },
            )
            for system, own in whole.items()
        ]
        wanted["usage"] = partial(heat_maps, maps=maps, labels=("expert", "spoken"))
        wanted["gates"] = partial(_gate_histograms, systems=whole)
        wanted["calibration"] = partial(_reliability, systems=whole)
    if results["in_time"]:
        wanted["in_time"] = partial(_in_time, rows=results["in_time"], spectrograms=arrays)
    return wanted


def _gate_histograms(figure: Any, systems: Mapping[str, Content]) -> None:
    for axes, (system, own) in zip(panels(figure, len(systems)), systems.items(), strict=True):
        for name, counts in own["histogram"].items():
            edges = np.linspace(0, 1, len(counts) + 1)
            axes.stairs(counts, edges, label=name)
        axes.set_yscale("symlog", linthresh=1)
        axes.set(title=system, xlabel="gate", ylabel="utterances")
    axes.legend(fontsize="small")


def _reliability(figure: Any, systems: Mapping[str, Content]) -> None:
    for axes, (system, own) in zip(panels(figure, len(systems)), systems.items(), strict=True):
        bins = own["calibration"]
        filled = [n for n, count in enumerate(bins["count"]) if count]
        right = [bins["accuracy"][n] for n in filled]
        ends = [
            [max(0.0, right[i] - bins["interval"][n][0]) for i, n in enumerate(filled)],
            [max(0.0, bins["interval"][n][1] - right[i]) for i, n in enumerate(filled)],
        ]
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
        axes.errorbar([bins["confidence"][n] for n in filled], right, ends, fmt="o", capsize=2)
        ece = "-" if bins["ece"] is None else f"{bins['ece']:.3f}"
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="highest probability")
        axes.set(ylabel="share that is right", title=f"{system}: ECE {ece}")


def _in_time(figure: Any, rows: Sequence[Content], spectrograms: Mapping[str, np.ndarray]) -> None:
    """A spectrogram an utterance; under it who spoke which language, and what was decided."""
    by_utterance: dict[tuple[str, str], list[Content]] = {}
    for row in rows:
        by_utterance.setdefault((row["set"], row["utt_id"]), []).append(row)
    names = {name for row in rows for part in ("spoken", "decided") for *_, name in row[part]}
    colours = {name: f"C{number}" for number, name in enumerate(sorted(names))}
    figure.set_size_inches(9, 2.6 * len(by_utterance))
    for part, ((name, key), own) in zip(
        figure.subfigures(len(by_utterance), 1, squeeze=False)[:, 0],
        by_utterance.items(),
        strict=True,
    ):
        above, below = part.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 0.5 + 0.5 * len(own)]}
        )
        end = own[0]["spoken"][-1][1]
        picture = spectrograms[key].astype(np.float32)
        above.imshow(
            picture,
            **{"origin": "lower", "aspect": "auto", "cmap": "Greys", "vmin": -70, "vmax": 0},
            extent=(0, end, 0, 8),
        )
        above.set_ylabel("kHz")
        above.set_title(f"{name}: {key}", fontsize="small")
        lines = [("spoken", own[0]["spoken"]), *((row["system"], row["decided"]) for row in own)]
        for y, (_, stretches) in enumerate(lines):
            for start, stop, language in stretches:
                below.barh(-y, stop - start, 0.8, start, color=colours[language])
                middle = (start + stop) / 2
                below.text(middle, -y, language, ha="center", va="center", fontsize="x-small")
        below.set_yticks([-y for y in range(len(lines))], [label for label, _ in lines])
        below.set(xlabel="seconds", xlim=(0, end))


def _transfer(results: Content, arrays: Mapping[str, np.ndarray]) -> dict[str, Draw]:
    wanted: dict[str, Draw] = {}
    for measure, table in results["tables"].items():
        maps = [
            (f"{measure}: {title}", {**_sides(table), "values": table[key]})
            for key, title in (("gain", "gain, %"), ("recovered", "recovered, %"))
        ]
        axes = ("spoken", "expert")
        wanted[f"{measure}_gain"] = partial(
            heat_maps, maps=maps, low=-100, high=100, labels=axes, decimals=0
        )
        known = [rate for row in table["rate"] for rate in row if rate is not None]
        unit, decimals = ("%", 1) if measure == "wer" else ("nats a token", 2)
        rates = [(f"{measure}, {unit}", {**_sides(table), "values": table["rate"]})]
        wanted[measure] = partial(
            heat_maps, maps=rates, high=max(known) or 1.0, labels=axes, decimals=decimals
        )
    if results.get("curves"):
        wanted["curves"] = partial(_curves, curves=results["curves"])
    return wanted


def _curves(figure: Any, curves: Mapping[str, Mapping[str, Sequence[Content]]]) -> None:
    """A panel a language: WER by hours of training data, a line for what trainings began from."""
    starts = list(dict.fromkeys(start for own in curves.values() for start in own))
    for axes, (language, own) in zip(panels(figure, len(curves)), curves.items(), strict=True):
        for start, points in own.items():
            hours, wers = ([point[key] for point in points] for key in ("hours", "wer"))
            ends = [point.get("interval", (point["wer"],) * 2) for point in points]
            spread = np.abs(np.array(ends).T - np.array(wers))
            color = f"C{starts.index(start)}"
            label = start if start == "scratch" else f"from {start}"
            axes.errorbar(hours, wers, spread, color=color, marker="o", capsize=2, label=label)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set(title=language, xlabel="hours of training data", ylabel="WER, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def _sides(table: Content) -> dict[str, Any]:
    return {side: table[side] for side in SIDES}


def _probing(results: Content, arrays: Mapping[str, np.ndarray]) -> dict[str, Draw]:
    return {
        name: partial(_by_layer, results=results, key=name) for name in ("accuracy", "selectivity")
    }


def _by_layer(figure: Any, results: Content, key: str) -> None:
    """A panel a task: the base dashed, the language's expert solid."""
    layers, rows = results["layers"], results["rows"]
    tasks = list(dict.fromkeys((row["task"], row["source"]) for row in rows))
    languages = list(dict.fromkeys(row["language"] for row in rows))
    places = panels(figure, len(tasks))
    for axes, (task, source) in zip(places, tasks, strict=True):
        for number, language in enumerate(languages):
            for base in (True, False):
                values = {
                    row["layer"]: row[key]
                    for row in rows
                    if (row["task"], row["source"], row["language"]) == (task, source, language)
                    and (row["condition"] == "base") is base
                }
                axes.plot(
                    range(len(layers)),
                    [values.get(layer, np.nan) for layer in layers],
                    "o--" if base else "o-",
                    **{"color": f"C{number}", "markersize": 3, "linewidth": 1},
                    label=None if base else language,
                )
        axes.set_xticks(range(len(layers)), layers)
        axes.set(title=f"{task} ({source})", xlabel="encoder layers passed", ylabel=key)
        axes.grid(alpha=0.3)
    places[0].legend(fontsize="small", title="expert; base dashed", title_fontsize="x-small")


_PICTURES: dict[str, Callable[[Content, Mapping[str, np.ndarray]], dict[str, Draw]]] = {
    "similarity": _similarity,
    "spectrum": _spectrum,
    "significance": _significance,
    "layers": _layers,
    "errors": _errors,
    "routing": _routing,
    "transfer": _transfer,
    "probing": _probing,
}


def _dendrograms(figure: Any, linkages: Mapping[str, Content]) -> None:
    from scipy.cluster.hierarchy import dendrogram

    figure.set_size_inches(3.6 * len(linkages), 3.2)
    places = figure.subplots(1, len(linkages), squeeze=False)[0]
    for axes, (what, own) in zip(places, linkages.items(), strict=True):
        dendrogram(
            np.array(own["tree"], dtype=float),
            labels=list(own["names"]),
            ax=axes,
            color_threshold=0,
            above_threshold_color="C0",
        )
        axes.set(title=f"by {what}", ylabel="1 − similarity")


def _energy(figure: Any, experts: Mapping[str, Content]) -> None:
    groups = [g for g in ("encoder", "decoder") if g in next(iter(experts.values()))["means"]]
    groups = groups or ["all"]
    figure.set_size_inches(4.2 * len(groups), 3.2)
    places = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, group in zip(places, groups, strict=True):
        for name, own in experts.items():
            curve = own["means"][group]["energy"]
            axes.plot(range(1, len(curve) + 1), curve, label=name)
        axes.set(
            title=group, xlabel="directions", ylabel="energy, mean over layers", ylim=(0, 1.02)
        )
        axes.grid(alpha=0.3)
    places[-1].legend(fontsize="small")


def _effective_rank(figure: Any, experts: Mapping[str, Content]) -> None:
    means = next(iter(experts.values()))["means"]
    # Layers are named "encoder.3"; kinds and parts have other places to be seen.
    layers = [group for group in means if group.rpartition(".")[0] in ("encoder", "decoder")]
    layers = layers or ["all"]
    figure.set_size_inches(max(4.0, 0.5 * len(layers) + 2), 3.2)
    axes = figure.subplots()
    for name, own in experts.items():
        values = [own["means"][layer]["effective_rank"] for layer in layers]
        axes.plot(range(len(layers)), values, "o-", label=name)
    axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right")
    axes.set(ylabel="effective rank, mean over modules", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
