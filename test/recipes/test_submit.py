"""submit.sh and status.sh: all stages as a chain of jobs of a real SLURM."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.test_moe_sh import DATA, OPTIONS, ROOT, Recipe


class Submitted(Recipe):
    """A recipe whose run.sh is moe.sh with its usual options."""

    def __init__(self, folder: Path, slurm_env: dict[str, str]) -> None:
        super().__init__(folder)
        template = folder / "egs2/TEMPLATE/moe1"
        for name in ("submit.sh", "status.sh"):
            self.write(name, None).symlink_to(template / name)
        options = " ".join(f"'{word}'" for word in OPTIONS)
        self.write("run.sh", f'#!/usr/bin/env bash\nset -e\n./moe.sh {options} "$@"\n')
        shutil.copy(ROOT / "egs2/mini/moe1/conf/slurm.conf", self.folder / "conf")
        real = ROOT / "tools/venv/bin/python"
        self.env = os.environ | {
            **slurm_env,
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "REAL_PYTHON": str(real if real.exists() else "python"),
            "LOG": str(self.log),
        }

    def do(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self.folder, env=self.env | env, capture_output=True, text=True
        )

    def wait(self) -> None:
        """Until no job is left."""
        self.wait_for(lambda: not self.jobs())

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """A slow machine is waited for; a queue that stands still for 200 s is given up."""
        before, until, last = "", time.monotonic() + 200, time.monotonic() + 1500
        while not happened():
            if (now := self.jobs()) != before:
                before, until = now, time.monotonic() + 200
            assert time.monotonic() < min(until, last), self.do("squeue").stdout
            time.sleep(0.3)

    def jobs(self) -> str:
        """Number, state and cause of waiting of each."""
        found = self.do("squeue", "--noheader", "--format", "%i %T %r")
        assert found.returncode == 0, found.stderr
        return found.stdout


@pytest.fixture
def recipe(tmp_path: Path, slurm: dict[str, str]) -> Submitted:
    return Submitted(tmp_path, slurm)


def test_the_chain_completes(recipe: Submitted) -> None:
    done = recipe.do("./submit.sh", "--ngpu", "0", "--train_args", "--max_epoch 4 --name 'a b'")
    assert done.returncode == 0, done.stderr
    ids = re.findall(r"^job (\d+): stage (\d+)", done.stdout, re.M)
    assert [number for _, number in ids] == [
        "1",
        "2",
        "3",
        "4",
        "5",
        "6",
        "8",
        "10",
        "11",
        "12",
        "13",
    ]
    assert f"job {ids[6][0]}: stage 8, an array over hi it, after {ids[5][0]}" in done.stdout
    recipe.wait()
    verbs = recipe.did()
    assert verbs.count("train") == 2 and verbs.count("score") == 1
    assert "--max_epoch 4" in recipe.line("train ", "--experts it ")
    for name in ("hi", "it"):
        assert (recipe.folder / f"exp/name/expert_{name}/expert/expert.json").exists()
    status = recipe.do("./status.sh").stdout
    rows = [line.split()[:3] for line in status.splitlines()[2:] if line.strip()]
    assert len(rows) == 12  # stage 8 has two
    assert {row[-1] if row[1] != "8" else "done" for row in rows} == {"done"}, status
    assert re.search(rf"^{ids[6][0]}_1 +8 it +done", status, re.M), status


def test_a_failing_expert_stops_what_depends_on_it(recipe: Submitted) -> None:
    words = "train --config conf/train_expert.yaml --phase expert --experts it"
    assert recipe.do("./submit.sh", "--ngpu", "0", FAIL=words).returncode == 0
    recipe.wait()
    assert "decode" not in recipe.did() and "score" not in recipe.did()
    status = recipe.do("./status.sh").stdout
    assert re.search(r"8 hi +done", status), status
    assert re.search(r"8 it +failed \(1\)", status), status
    for stage in (10, 11, 12, 13):
        assert re.search(rf" {stage} +not run", status), status
    assert "end of exp/name/submit/stage8_it.log" in status
    assert "1 / 1 failed" in status
    # Those that will never start are gone, and the same call does the rest.
    assert recipe.do("./submit.sh", "--ngpu", "0").returncode == 0
    recipe.wait()
    assert re.search(r" 13 +done", recipe.do("./status.sh").stdout)
    assert sum(verb.startswith("train") for verb in recipe.did()) == 3  # hi, it, it


def test_a_stage_that_is_preempted_goes_on(recipe: Submitted) -> None:
    """Stage 1 outlives the signal for as long as it takes to write a checkpoint."""
    recipe.write(
        "local/data.sh",
        "#!/usr/bin/env bash\n"
        "[ -e seen ] || { touch seen; trap 'sleep 0.5; touch saved; exit 75' TERM; sleep 100; }\n"
        + DATA,
    )
    assert recipe.do("./submit.sh", "--ngpu", "0", "--stop_stage", "2").returncode == 0
    recipe.wait_for(lambda: (recipe.folder / "seen").exists())
    job = (recipe.folder / "exp/name/submit/jobs").read_text().split()[0]
    again = recipe.do("./submit.sh", "--ngpu", "0")
    assert again.returncode == 2
    assert f"jobs of an earlier call are under way: {job} {int(job) + 1} ;" in again.stderr
    assert recipe.do("scontrol", "requeue", job).returncode == 0
    recipe.wait()
    assert (recipe.folder / "saved").exists()
    assert re.findall(r" ([12]) +done", recipe.do("./status.sh").stdout) == ["1", "2"]
    assert (
        "preempted or cancelled (TERM)"
        in (recipe.folder / "exp/name/submit/stage1.log").read_text()
    )


def test_nothing_was_submitted(recipe: Submitted) -> None:
    """Called from another folder, as a user may."""
    relative = f"{recipe.folder.name}/status.sh"
    for words, code, said in (
        ([], 1, "nothing was submitted"),
        (["--no", "1"], 2, "no is unknown"),
    ):
        done = subprocess.run(
            [relative, *words],
            cwd=recipe.folder.parent,
            env=recipe.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code
        assert said in done.stderr and "can't read" not in done.stderr


def test_what_is_refused(recipe: Submitted) -> None:
    done = recipe.do("./submit.sh")
    assert done.returncode == 2
    assert "submitted jobs need --ngpu" in done.stderr
    squeue = recipe.write(
        "bin/squeue", "#!/bin/sh\necho 'slurm_load_jobs error: timed out' >&2\nexit 1\n"
    )
    assert recipe.do("./submit.sh", "--ngpu", "0", "--stop_stage", "1").returncode == 0
    again = recipe.do("./submit.sh", "--ngpu", "0", "--stop_stage", "1")
    assert again.returncode == 2
    assert "SLURM does not say whether jobs of an earlier call are under way: slurm_load_jobs" in (
        again.stderr
    )
    status = recipe.do("./status.sh")
    assert re.search(r" 1 +unknown", status.stdout), status.stdout
    assert "SLURM does not answer" in status.stderr
    squeue.unlink()
    recipe.wait()


def test_some_experts_and_a_list_over_several_lines(recipe: Submitted) -> None:
    options = ["--ngpu", "0", "--only_experts", "it", "--stop_stage", "8"]
    done = recipe.do(
        "./submit.sh", *options, "--sources", "hi:commonvoice,kathbath\nit:commonvoice"
    )
    assert done.returncode == 0, done.stderr
    assert "stage 8, an array over it, " in done.stdout
    recipe.wait()
    status = recipe.do("./status.sh").stdout
    assert re.findall(r" 8 (\w+) +(\w+)", status) == [("it", "done")], status


def test_chains_that_share_their_data(recipe: Submitted) -> None:
    """Two experiments at the same time: one makes the data, the other waits for them."""
    for name in ("one", "two"):
        words = ["--ngpu", "0", "--expdir", f"exp/{name}", "--stop_stage", "4"]
        assert recipe.do("./submit.sh", *words).returncode == 0
    recipe.wait()
    for name in ("one", "two"):
        status = recipe.do("./status.sh", "--expdir", f"exp/{name}").stdout
        assert re.findall(r"^\d+ +\d +(\w+)", status, re.M) == ["done"] * 4, status
    assert recipe.did().count("data.sh") == 1
