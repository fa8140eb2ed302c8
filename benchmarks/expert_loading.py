#!/usr/bin/env python3
"""An expert from disk, another one in force, with 1 to 100 experts there; the router's share.

Whisper small's shape, random weights, experts of rank 16 in queries and values. Loading is taking
an expert in by its folder (``Shelf.add``), and reading it, checked, into its place among the others
(``read_weights``, ``load_state``); wall time, the file is in the page cache. Activation is making
the gates of a batch of 16 and putting them in force. PEFT's is ``load_adapter``. The router is
linear, on the encoder's layer 4, whose frames the same pass gives on.

  benchmarks/expert_loading.py
  benchmarks/expert_loading.py --quick
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import Report, Row, alternate, begin, get_parser
from models import LANGUAGES, encoding, features, no_experts, whisper, with_experts

from espnet_moe.experts.expert_files import read_manifest, read_weights, save_expert
from espnet_moe.experts.expert_set import ExpertSet
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.inference.replicas import share
from espnet_moe.inference.shelf import Shelf
from espnet_moe.routing.networks import LinearOptions
from espnet_moe.routing.routers import Router
from espnet_moe.routing.strategies import StrategyOptions, build_strategy

LAYER = 4
MILLISECONDS = 1e3


def read(folder: Path, experts: ExpertSet, name: str) -> None:
    """From disk into its place, checked."""
    state = read_weights(folder, read_manifest(folder))
    experts.load_state(name, state)


def loading(report: Report, base: Any, folder: Path, counts: Sequence[int]) -> None:
    """Loading and activation beside the number of experts."""
    digest = base.digest()
    _, one = with_experts(base, "q,v", 1)
    facts = {"languages": ["hi"], "backbone": "random", "context": base.context}
    save_expert(folder / "expert", one, one.names[0], digest, facts)
    calls, activations = {}, {}
    rows = 16
    for count in counts:
        _, experts = with_experts(base, "q,v", count)
        last = experts.names[-1]
        shelf = Shelf(base, digest)
        for e in range(count - 1):
            shelf.add(f"earlier{e}", folder / "expert")

        def load(experts: ExpertSet = experts, last: str = last, shelf: Shelf = shelf) -> None:
            shelf.add("new", folder / "expert")
            read(folder / "expert", experts, last)
            shelf.remove("new")

        def activate(experts: ExpertSet = experts, last: str = last) -> None:
            with use_gates(experts.one_hot([last] * rows, base.device)):
                pass

        calls[str(count)], activations[str(count)] = load, activate
        load()
        state, want = experts.state(last), one.state(one.names[0])
        apart = max(float((state[key] - want[key]).abs().max()) for key in want)
        report.check(f"what is loaded as expert {count} is what was saved", apart, 0.0)
    calls["peft"] = with_peft_loading(base, one, folder)
    times = alternate(calls, 3 * report.options.rounds, clock=time.perf_counter)
    switched = alternate(activations, report.options.rounds, time.perf_counter, repeat=20)
    few, many = str(counts[0]), str(counts[-1])
    for count in counts:
        value = times.of(str(count)).times(MILLISECONDS)
        report.add(Row(f"load expert number {count}", value, unit="ms", bar="<= 20"))
    value = times.ratio(many, few)
    report.add(Row(f"load expert number {many} / number {few}", value, note="constant"))
    value = times.of("peft").times(MILLISECONDS)
    report.add(Row("PEFT's load_adapter, number 2", value, unit="ms"))
    for count in counts:
        value = switched.of(str(count)).times(MILLISECONDS)
        report.add(Row(f"activate one of {count}", value, unit="ms", bar="<= 1"))


def with_peft_loading(base: Any, one: ExpertSet, folder: Path) -> Any:
    """A call that loads our saved expert into PEFT beside another, and drops it again."""
    from peft import PeftModel

    copy = share(base, base)
    model = PeftModel.from_pretrained(copy.hf, str(folder / "expert"), adapter_name="first")

    def load() -> None:
        model.load_adapter(str(folder / "expert"), adapter_name="new")
        model.delete_adapter("new")

    return load


def routing(report: Report, base: Any) -> None:
    """The router and the strategy beside the encoder."""
    quick = report.options.quick
    rows, seconds, layer = (2, 1.0, 1) if quick else (2, 5.0, LAYER)
    mel = features(base, rows, seconds)
    lengths = torch.full((rows,), mel.size(2))
    names = [f"l{e}" for e in range(len(LANGUAGES))]
    router = Router(LinearOptions(layer=layer), base.dim, names, LANGUAGES).eval()
    strategy = build_strategy("soft", StrategyOptions(), names)
    with torch.no_grad():
        lower = base.encode_features(mel, lengths, layer)

    @torch.no_grad()
    def route() -> Gates:
        return strategy.gates(router(lower.hidden, lower.spoken).experts)

    @torch.no_grad()
    def routed() -> torch.Tensor:
        lower = base.encode_features(mel, lengths, layer)
        strategy.gates(router(lower.hidden, lower.spoken).experts)
        hidden: torch.Tensor = base.encode_upper(lower, layer).hidden
        return hidden

    calls = {"router": route, "encoder": encoding(base, mel, no_experts), "routed": routed}
    report.check("encoder in one pass with the router", routed(), calls["encoder"]())
    times = report.time(calls)
    size = f"{rows} x {seconds:.0f} s"
    value = times.ratio("router", "encoder")
    report.add(Row(f"router and strategy / encoder: {size}", value, bar="<= 0.01"))
    value = times.ratio("routed", "encoder")
    report.add(Row(f"encoder with the router in its pass / without: {size}", value))


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print a table."""
    parser = get_parser(__doc__, rounds=7)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100], help="of experts")
    report = begin("Loading and choosing experts", parser, argv)
    base = whisper("tiny" if report.options.quick else "small")
    with tempfile.TemporaryDirectory() as folder:
        loading(report, base, Path(folder), report.options.counts)
    routing(report, base)
    report.write()
    return report


if __name__ == "__main__":
    main()
