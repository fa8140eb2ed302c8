"""The benchmarks' comparisons hold, and their figures are what they say; no time is asserted."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["a_test.py"])
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "checks"),
    [
        ("mixture", ["--targets", "q,v", "--parts", "encoder", "step"], 7),
        ("feed_forward", ["--rows", "2"], 1),
        ("mixed_batch", ["--parts", "encoder", "beams"], 4),
        ("expert_loading", ["--counts", "1", "3"], 3),
        ("expert_count", ["--counts", "1", "3"], 0),
        ("training_step", ["--parts", "short"], 2),
        ("short_utterances", ["--rows", "1", "--tokens", "2"], 2),
        ("decoding", ["--utterances", "3", "--one_by_one", "1", "--tokens", "3"], 6),
        ("embedding", ["--utterances", "3", "--batch_size", "2"], 1),
        ("launching", ["--modules", "decode"], 1),
        ("clustering", [], 1),
    ],
)
def test_outputs_are_equal_before_anything_is_timed(name, options, checks, tmp_path):
    pytest.importorskip("peft")
    out = tmp_path / "figures.json"
    module = importlib.import_module(name)
    report = module.main(["--quick", "--rounds", "1", "--out", str(out), *options])
    told = json.loads(out.read_text("utf-8"))
    assert len(report.checks) == len(told["checks"]) == checks
    values = torch.tensor([row["value"]["median"] for row in told["rows"]])
    assert len(values) and bool(values.isfinite().all())
    assert all(row["met"] is None for row in told["rows"]), "the bars are for the real shapes"
    assert told["machine"]["commit"] and told["ceilings"]["operations"] > 0


def test_a_difference_stops_a_benchmark():
    from harness import Report

    report = Report("a test", argparse.Namespace(quick=False))
    one = torch.ones(3)
    report.check("the same", one, one + 1e-6)
    with pytest.raises(AssertionError, match="the experts: 0.01 apart"):
        report.check("the experts", one * 1.01, one)
    with pytest.raises(AssertionError, match="do nothing"):
        report.check_differs("do nothing", one, one)


def test_ratios_are_of_the_same_round():
    from harness import Times

    times = Times({"ours": [1.0, 10.0, 2.0], "theirs": [2.0, 20.0, 4.0]})
    ratio = times.ratio("theirs", "ours")
    assert (ratio.median, ratio.p5, ratio.p95) == (2.0, 2.0, 2.0)


def test_bars_are_judged_by_the_median():
    from harness import Row, Spread

    spread = Spread.of([1.0, 1.2, 1.1])
    assert spread.median == 1.1
    assert Row("a", spread, bar="<= 1.10").met and not Row("a", spread, bar=">= 2").met
    assert Row("a", spread).met is None


def test_peak_memory_is_what_is_there_at_a_time():
    from harness import peak_memory

    def one_after_the_other():
        for _ in range(3):
            torch.zeros(1000, 1000)

    def together():
        return [torch.zeros(1000, 1000) for _ in range(3)]

    assert 4e6 <= peak_memory(one_after_the_other) < 9e6
    assert 12e6 <= peak_memory(together) < 13e6


def test_work_counts_operations_and_each_input_once():
    from harness import Work

    a, b = torch.randn(10, 20), torch.randn(20, 30)
    work = Work.of(lambda: (a @ b) + (a @ b).exp())
    assert work.operations == 2 * 2 * 10 * 20 * 30
    assert work.bytes == 4 * (10 * 20 + 20 * 30)
    y, z = torch.randn(10, 30), torch.randn(2, 10, 30)
    work = Work.of(lambda: (y.addmm_(a, b), z.baddbmm_(a.expand(2, -1, -1), b.expand(2, -1, -1))))
    assert work.operations == 3 * 2 * 10 * 20 * 30
