"""What the benchmarks share: calls timed in turn, ratios, peak memory, floors, and tables.

Absolute times on a machine with other work are noise. So calls are timed in turn, round after
round, by the processor time of this process, and a figure is the median of the rounds' ratios with
its 5th and 95th percentile. A floor is the least time that a call's arithmetic could take: its
operations at the rate of a large matrix product, or what it must read and write at the rate of a
copy of memory, whichever is longer; both rates are measured in the same run.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "peft", "loralib", "openai-whisper", "espnet", "hdbscan")
PERCENTILES = (5, 95)


def _product_in_place(_: Any, a: Any, b: Any, **__: Any) -> int:
    """Operations of products of shapes ``(..., m, k)`` and ``(..., k, n)``."""
    return 2 * math.prod(a) * int(b[-1])


# The counter knows products that make their output, not those that add to one in place.
IN_PLACE = dict.fromkeys([torch.ops.aten.addmm_, torch.ops.aten.baddbmm_], _product_in_place)

Call = Callable[[], Any]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """Median, 5th and 95th percentile of the rounds."""

    median: float
    p5: float
    p95: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value a round."""
        ordered = sorted(values)
        low, high = (ordered[round(p / 100 * (len(ordered) - 1))] for p in PERCENTILES)
        return cls(statistics.median(ordered), low, high)

    def times(self, factor: float) -> "Spread":
        """All three, multiplied."""
        return Spread(self.median * factor, self.p5 * factor, self.p95 * factor)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.p5:.3g}-{self.p95:.3g})"


@dataclass(frozen=True)
class Times:
    """Seconds of each call, round by round."""

    seconds: Mapping[str, list[float]]

    def of(self, name: str) -> Spread:
        """Seconds of a call."""
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, against: str) -> Spread:
        """How many times as long ``name`` takes, from the ratios within each round."""
        pairs = zip(self.seconds[name], self.seconds[against], strict=True)
        return Spread.of([a / b for a, b in pairs])


def alternate(
    calls: Mapping[str, Call],
    rounds: int,
    clock: Clock = time.process_time,
    repeat: int = 1,
    warm: bool = False,
) -> Times:
    """Time calls in turn, beginning with another one in each round.

    Args:
        calls: By name.
        rounds: Rounds that are timed.
        clock: Seconds. Processor time leaves out what other processes take, and waiting for a disk.
        repeat: Calls in a row that are timed as one, for short ones.
        warm: Whether all have been called before; otherwise they are, untimed.
    """
    names = list(calls)
    if not warm:
        for call in calls.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            call = calls[name]
            began = clock()
            for _ in range(repeat):
                call()
            seconds[name].append((clock() - began) / repeat)
    return Times(seconds)


def peak_memory(call: Call) -> int:
    """Bytes that a call has allocated by torch at most at a time, beyond what was there before."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        call()
    assert found.profiler is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


class _Traffic(TorchDispatchMode):
    """Bytes of the tensors that a call reads and that were there before it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[int] = set()
        self.read: dict[int, int] = {}
        self._keep: list[Any] = []  # so that no address is given out twice

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and _storage(leaf) not in self.made:
                seen = self.read.get(_storage(leaf), 0)
                self.read[_storage(leaf)] = max(seen, leaf.nbytes)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and _storage(leaf) not in self.read:
                self.made.add(_storage(leaf))
                self._keep.append(leaf)
        return out


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass(frozen=True)
class Work:
    """What a call's arithmetic is.

    Attributes:
        operations: Additions and multiplications of matrix products, convolutions and attention.
        bytes: Of the weights, caches and inputs that are read, each once.
    """

    operations: int
    bytes: int

    @classmethod
    def of(cls, call: Call) -> "Work":
        """Count them while the call runs."""
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            call()
        with _Traffic() as traffic:
            call()
        return cls(counter.get_total_flops(), sum(traffic.read.values()))


@dataclass(frozen=True)
class Ceilings:
    """Rates that this machine reaches with the threads in use.

    Attributes:
        operations: A second, in a product of matrices of 1024 x 1024.
        bytes: A second, read and written, in a copy of 256 MB.
    """

    operations: float
    bytes: float

    @classmethod
    def measure(cls, rounds: int = 7) -> "Ceilings":
        """The best of some rounds."""
        n = 1024
        a, b, product = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
        source = torch.zeros(64 * 2**20)
        target = torch.zeros_like(source)
        calls = {
            "product": lambda: torch.mm(a, b, out=product),
            "copy": lambda: target.copy_(source),
        }
        times = alternate(calls, rounds)
        least = {name: min(values) for name, values in times.seconds.items()}
        return cls(2 * n**3 / least["product"], 2 * source.nbytes / least["copy"])

    def seconds(self, work: Work) -> float:
        """The floor of a call."""
        return max(work.operations / self.operations, work.bytes / self.bytes)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: That was measured, with its size.
        value: The figure.
        unit: Of the figure: ``x`` for a ratio.
        bar: What is asked, such as ``<= 1.10``; empty where nothing is.
        floor: What the arithmetic alone would give for the figure, in its unit.
        over_floor: Measured seconds / floor of the call.
        note: What is worth knowing.
    """

    what: str
    value: Spread
    unit: str = "x"
    bar: str = ""
    floor: float | None = None
    over_floor: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met by the median; ``None`` without one."""
        if not self.bar:
            return None
        sign, limit = self.bar.split()
        return (
            self.value.median <= float(limit) if sign == "<=" else self.value.median >= float(limit)
        )

    def cells(self) -> list[str]:
        """What the table shows."""
        met = {None: "", True: "met", False: "missed"}[self.met]
        floor = "" if self.floor is None else f"{self.floor:.3g}"
        over = "" if self.over_floor is None else f"{self.over_floor:.2g}"
        return [self.what, f"{self.value} {self.unit}", self.bar, met, floor, over, self.note]


HEADS = ["what", "median (p5-p95)", "bar", "", "floor", "measured / floor", "note"]


@dataclass
class Report:
    """The rows of a benchmark, with where and how they came to be."""

    title: str
    options: argparse.Namespace
    rows: list[Row] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    seconds: list[Mapping[str, list[float]]] = field(default_factory=list)

    @cached_property
    def ceilings(self) -> Ceilings:
        """Measured when they are first asked for."""
        return Ceilings.measure()

    def add(self, row: Row) -> None:
        """Take a row in, and show it; the bars are for the real shapes, not for ``--quick``."""
        if self.options.quick:
            row = replace(row, bar="")
        self.rows.append(row)
        print("| " + " | ".join(row.cells()) + " |", flush=True)

    def check(self, what: str, ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
        """Refuse to go on where two outputs differ; tensors by more than ``tolerance``, relative.

        Raises:
            AssertionError: Naming both, and how far they are apart.
        """
        if isinstance(ours, torch.Tensor):
            apart = float((ours - theirs).abs().max() / theirs.abs().max())
            assert apart <= tolerance, f"{what}: {apart:.2g} apart"
            self.checks.append(f"{what}: {apart:.1g} apart, relative to the largest value")
        else:
            assert ours == theirs, f"{what}: {ours} is not {theirs}"
            self.checks.append(f"{what}: the same")
        print(f"checked {self.checks[-1]}", flush=True)

    def check_differs(self, what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Refuse to go on where two outputs are alike: what is compared would not have acted.

        Raises:
            AssertionError: Naming both.
        """
        apart = float((ours - theirs).abs().max() / theirs.abs().max())
        assert apart > 1e-3, f"{what}: only {apart:.2g} apart"

    def time(self, calls: Mapping[str, Call], **how: Any) -> Times:
        """Time calls in turn, for the rounds of the options; see :func:`alternate`."""
        times = alternate(calls, self.options.rounds, **how)
        self.seconds.append(times.seconds)
        return times

    def over_floor(self, seconds: float, call: Call) -> float:
        """Measured / floor of a call."""
        return seconds / self.ceilings.seconds(Work.of(call))

    def write(self) -> None:
        """Print the table; with ``--out``, write it all as JSON."""
        print(f"\n## {self.title}\n\n{command()}\n")
        print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
        for row in self.rows:
            print("| " + " | ".join(row.cells()) + " |")
        if self.options.out is None:
            return
        told = {
            "title": self.title,
            "command": command(),
            "options": {k: str(v) for k, v in vars(self.options).items()},
            "machine": machine(),
            "ceilings": asdict(self.ceilings),
            "checks": self.checks,
            "seconds": self.seconds,
            "rows": [{**asdict(row), "met": row.met} for row in self.rows],
        }
        self.options.out.parent.mkdir(parents=True, exist_ok=True)
        self.options.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def get_parser(description: str | None, rounds: int = 9) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds")
    parser.add_argument("--rounds", type=int, default=rounds, help="that are timed")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, help="where the figures go as JSON")
    return parser


def begin(title: str, parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> Report:
    """Read the command line, set the threads and the seed."""
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds = min(args.rounds, 3)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return Report(title, args)


def command() -> str:
    """How this run was called."""
    return " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """Processor, load, versions, commit."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        **versions,
    }
