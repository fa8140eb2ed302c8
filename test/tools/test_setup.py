"""tools/setup.sh with a Python and a uv that only pretend: no download, the same decisions."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Makes environments whose pip "installs" a uv, which writes what it was asked to $LOG, and dies
# where $FAIL names a part of its arguments.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    --version) echo "Python $VERSION" ;;
    *"sys.exit(not"*) [ "$VERSION" != 3.10.1 ] ;;
    "-m venv "*)
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        echo "command = python3 -m venv $3" >"$3/pyvenv.cfg"
        echo "venv" >>"$LOG"
        ;;
    *"pip install"*uv==*)
        cat >"$(dirname "$0")/uv" <<'UV'
#!/usr/bin/env bash
echo "uv $*" >>"$LOG"
[ -z "${FAIL:-}" ] || [[ "$*" != *"$FAIL"* ]] || kill -9 $PPID
UV
        chmod +x "$(dirname "$0")/uv"
        ;;
esac
"""


class Checkout:
    """A copy of what setup.sh needs, and calls of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.stamp = folder / "tools/venv/.complete"
        (folder / "tools").mkdir(parents=True)
        (folder / "bin").mkdir()
        for name in ("setup.py", "tools/setup.sh", "tools/requirements.lock"):
            shutil.copy(ROOT / name, folder / name)
        python = folder / "bin/python3"
        python.write_text(PYTHON)
        python.chmod(0o755)

    def setup(self, version: str = "3.11.9", fail: str = "") -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        for name in ("python3.11", "python3.12", "python3.13"):
            shutil.copy(self.folder / "bin/python3", self.folder / "bin" / name)
        env = {"PATH": f"{self.folder}/bin:{os.defpath}", "LOG": str(self.log), "FAIL": fail}
        return subprocess.run(
            ["bash", self.folder / "tools/setup.sh"],
            env=env | {"VERSION": version},
            capture_output=True,
            text=True,
        )

    def did(self) -> list[str]:
        """What happened: "venv", or which packages were installed."""
        return [line.split()[-1] for line in self.log.read_text().splitlines()]


EVERYTHING = ["venv", "tools/requirements.lock", "."]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


def test_second_call_has_nothing_to_do(checkout: Checkout) -> None:
    first = checkout.setup()
    assert first.returncode == 0, first.stderr
    assert checkout.did() == EVERYTHING
    second = checkout.setup()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert checkout.did() == []


@pytest.mark.parametrize("where", ["requirements.lock", "--editable"])
def test_interrupted_call_is_repaired_by_the_next(checkout: Checkout, where: str) -> None:
    assert checkout.setup(fail=where).returncode != 0
    assert not checkout.stamp.exists()
    assert checkout.setup().returncode == 0
    assert checkout.did() == EVERYTHING
    assert checkout.stamp.exists()


def test_new_lock_completes_the_environment_in_place(checkout: Checkout) -> None:
    checkout.setup()
    with (checkout.folder / "tools/requirements.lock").open("a") as lock:
        lock.write("another==1.0\n")
    assert checkout.setup().returncode == 0
    assert checkout.did() == EVERYTHING[1:]


def test_environment_that_lost_its_python_is_made_anew(checkout: Checkout) -> None:
    checkout.setup()
    (checkout.folder / "tools/venv/bin/python").unlink()
    assert checkout.setup().returncode == 0
    assert checkout.did() == EVERYTHING


def test_moved_checkout_gets_a_new_environment(checkout: Checkout, tmp_path: Path) -> None:
    checkout.setup()
    checkout.folder.rename(tmp_path / "moved")
    moved = tmp_path / "moved/tools/setup.sh"
    env = {"PATH": f"{tmp_path}/moved/bin:{os.defpath}", "LOG": str(tmp_path / "log")}
    done = subprocess.run(
        ["bash", moved], env=env | {"VERSION": "3.12.1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text().splitlines()[0] == "venv"


def test_two_calls_at_once_install_once(checkout: Checkout) -> None:
    env = {"PATH": f"{checkout.folder}/bin:{os.defpath}", "LOG": str(checkout.log)}
    calls = [
        subprocess.Popen(
            ["bash", checkout.folder / "tools/setup.sh"],
            env=env | {"VERSION": "3.11.9"},
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [call.wait() for call in calls] == [0, 0]
    assert checkout.did() == EVERYTHING


def test_no_suitable_python(checkout: Checkout) -> None:
    failed = checkout.setup(version="3.10.1")
    assert failed.returncode == 1
    assert "no Python 3.11, 3.12 or 3.13" in failed.stderr
    assert "python3 (Python 3.10.1)" in failed.stderr


def test_lock_pins_what_setup_asks_for() -> None:
    lock = (ROOT / "tools/requirements.lock").read_text()
    assert "://" not in lock
    for package in ("espnet==202511", "espnet==202611", "torch==2.11.0", "torchaudio==2.11.0"):
        assert f"\n{package}" in lock
    pinned = [line for line in lock.splitlines() if line and not line.startswith("#")]
    assert all("==" in line.partition(";")[0] for line in pinned)
