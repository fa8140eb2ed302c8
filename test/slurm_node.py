"""A real SLURM of one node, started for the tests and stopped after them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the environment of its commands needs."""
    folder = tmp_path_factory.mktemp("slurm", numbered=False) / "node"
    start = subprocess.run(
        [ROOT / "tools/slurm/start.sh", folder], capture_output=True, text=True, timeout=600
    )
    if start.returncode == 3:
        pytest.skip(start.stderr.strip().splitlines()[-1])
    assert start.returncode == 0, start.stderr
    env = {"SLURM_CONF": start.stdout.strip().partition("=")[2]}
    yield env
    stopped = subprocess.run([ROOT / "tools/slurm/stop.sh"], env=os.environ | env)
    assert stopped.returncode == 0
    assert not folder.exists()
