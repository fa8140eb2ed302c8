"""utils/run.pl: exit codes, logs, quoting, limits, GPUs, and what happens at a signal."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN_PL = ROOT / "egs2/TEMPLATE/moe1/utils/run.pl"


def run(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RUN_PL, *words], cwd=folder, env=os.environ | env, capture_output=True, text=True
    )


def output(log: Path) -> list[str]:
    """The lines of the job itself."""
    return [line for line in log.read_text().splitlines() if not line.startswith("#")]


def test_success_and_log(tmp_path: Path) -> None:
    done = run(tmp_path, "--mem", "4G", "deep/er/a.log", "echo", "ciao")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines = (tmp_path / "deep/er/a.log").read_text().splitlines()
    assert lines[0] == f"# Running on {os.uname().nodename}"
    assert lines[1].startswith("# Started at ")
    assert lines[2] == "# echo ciao"
    assert output(tmp_path / "deep/er/a.log") == ["ciao"]
    assert re.fullmatch(r"# Ended \(code 0\) at .+, elapsed time \d+ seconds", lines[-1])


def test_failures_are_counted_and_the_first_is_shown(tmp_path: Path) -> None:
    job = ["echo", "job-JOB", ";", "[", "JOB", "-lt", "3", "]"]
    done = run(tmp_path, "JOB=1:4", "j.JOB.log", *job)
    assert done.returncode == 1
    assert "run.pl: 2 / 4 failed, log is in j.*.log" in done.stderr
    assert "job-3" in done.stderr and "job-4" not in done.stderr
    assert output(tmp_path / "j.2.log") == ["job-2"]


def test_code_of_a_job_that_was_killed(tmp_path: Path) -> None:
    done = run(tmp_path, "b.log", "kill", "-9", "$$")
    assert done.returncode == 1
    assert "# Ended (code 137)" in (tmp_path / "b.log").read_text()


def test_array_over_words(tmp_path: Path) -> None:
    run(tmp_path, "LANG=hi,it", "--num-threads", "1", "exp_LANG/t.log", "echo", "LANG")
    assert output(tmp_path / "exp_hi/t.log") == ["hi"]
    assert output(tmp_path / "exp_it/t.log") == ["it"]


def test_words_with_white_space_stay_words(tmp_path: Path) -> None:
    words = ["a b", "it's so", 'say "hi" now', 'it\'s "both" ways', "a | b > c", ""]
    run(tmp_path, "q.log", "printf", "[%s]\\\\n", *words)
    assert output(tmp_path / "q.log") == [f"[{word}]" for word in words]
    # Between double quotes variables count.
    run(tmp_path, "v.log", "echo", "at $HOME", HOME="/h")
    assert output(tmp_path / "v.log") == ["at /h"]


def test_words_without_white_space_are_the_shells(tmp_path: Path) -> None:
    words = ["echo", "ciao", "|", "tr", "a-z", "A-Z", ">", "out", "&&", "echo", "done"]
    assert run(tmp_path, "p.log", *words).returncode == 0
    assert (tmp_path / "out").read_text() == "CIAO\n"
    assert output(tmp_path / "p.log") == ["done"]


def test_a_pipe_fails_with_any_of_its_parts(tmp_path: Path) -> None:
    assert run(tmp_path, "a.log", "false", "|", "cat").returncode == 1


@pytest.mark.parametrize(
    "order", [["--max-jobs-run", "2", "JOB=1:6"], ["JOB=1:6", "--max_jobs_run", "2"]]
)
def test_at_most_so_many_at_a_time(tmp_path: Path, order: list[str]) -> None:
    count = "mkdir on.JOB; ls -d on.* | wc -l; sleep 0.05; rmdir on.JOB"
    assert run(tmp_path, *order, "m.JOB.log", "bash", "-c", count).returncode == 0
    seen = [int(output(tmp_path / f"m.{job}.log")[0]) for job in range(1, 7)]
    assert max(seen) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["JOB=1:2", "a.log", "true"], "need JOB in the name of the log"),
        (["JOB=2:1", "a.JOB.log", "true"], "empty range"),
        (["JOB=1:x", "a.JOB.log", "true"], "neither a range"),
        (["--gpus", "1", "a.log", "true"], "option --gpus is unknown; legal: --config --gpu"),
        (["--gpu", "one", "a.log", "true"], "needs a whole number, not 'one'"),
        (["a.log"], "a log file and a command are needed"),
    ],
)
def test_mistakes(tmp_path: Path, words: list[str], message: str) -> None:
    done = run(tmp_path, *words)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> dict[str, str]:
    """A machine with three GPUs."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


def test_each_job_has_gpus_of_its_own(
    tmp_path: Path, nvidia_smi: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    script = "mkdir gpu.$CUDA_VISIBLE_DEVICES; sleep 0.05; rmdir gpu.$CUDA_VISIBLE_DEVICES"
    show = ["bash", "-c", script + "; echo $CUDA_VISIBLE_DEVICES"]
    one = run(tmp_path, "--gpu", "1", "JOB=1:6", "one.JOB.log", *map(quoted, show), **nvidia_smi)
    assert one.returncode == 0, one.stderr  # mkdir fails for a GPU in use
    assert {output(tmp_path / f"one.{j}.log")[0] for j in range(1, 7)} == {"0", "1", "2"}
    run(
        tmp_path,
        "--gpu",
        "2",
        "JOB=1:2",
        "two.JOB.log",
        "printenv",
        "CUDA_VISIBLE_DEVICES",
        **nvidia_smi,
    )
    assert output(tmp_path / "two.1.log") == ["0,1"]
    run(tmp_path, "--gpu", "0", "none.log", "printenv", "CUDA_VISIBLE_DEVICES", **nvidia_smi)
    assert output(tmp_path / "none.log") == [""]
    some = nvidia_smi | {"CUDA_VISIBLE_DEVICES": "5,7"}
    run(tmp_path, "--gpu", "2", "some.log", "printenv", "CUDA_VISIBLE_DEVICES", **some)
    assert output(tmp_path / "some.log") == ["5,7"]
    many = run(tmp_path, "--gpu", "4", "many.log", "true", **nvidia_smi)
    assert many.returncode == 1
    assert "there are 3 GPUs here" in many.stderr


def quoted(word: str) -> str:
    """Keep run.pl's shell from filling in variables that belong to the job's own shell."""
    return word.replace("$", "\\$") if " " in word else word


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_everything(tmp_path: Path, number: signal.Signals) -> None:
    script = "sleep 600 & echo $! >pid.JOB; wait"
    launcher = subprocess.Popen(
        [RUN_PL, "--max-jobs-run", "2", "JOB=1:3", "s.JOB.log", "bash", "-c", quoted(script)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = [wait_for_number(tmp_path / f"pid.{job}") for job in (1, 2)]
    launcher.send_signal(number)
    assert launcher.wait(timeout=50) == 2
    assert "ended by SIG" in launcher.communicate()[1]
    until = time.monotonic() + 50  # a killed process may take a moment on a busy machine
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(is_alive, pids))
    assert not (tmp_path / "pid.3").exists()
    assert "# Ended (code 143)" in (tmp_path / "s.1.log").read_text()


def wait_for_number(path: Path) -> int:
    until = time.monotonic() + 50
    while time.monotonic() < until:
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
    raise AssertionError(f"{path} was never written")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ("true", 75),  # the next run has less to do
        ("false", 1),  # a failure of its own is one
        ("sleep 600", 1),  # killed like the other: a longer time is what helps
    ],
)
def test_the_time_limit_and_jobs_that_know_no_signals(
    tmp_path: Path, first: str, code: int
) -> None:
    script = f"echo $$ >pid.JOB; if [ JOB = 1 ]; then exec {first}; else exec sleep 600; fi"
    words = ["bash", "-c", quoted(script)]
    launcher = subprocess.Popen(
        [RUN_PL, "--max-jobs-run", "2", "JOB=1:2", "k.JOB.log", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = [wait_for_number(tmp_path / f"pid.{job}") for job in (1, 2)]
    until = time.monotonic() + 50
    while first != "sleep 600" and "# Ended" not in (tmp_path / "k.1.log").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    sleeping = pids if first == "sleep 600" else pids[1:]
    for process in (*sleeping, launcher.pid):  # as slurm.pl signals all that is below
        os.kill(process, signal.SIGUSR1)
    assert launcher.wait(timeout=50) == code
    said = launcher.communicate()[1]
    assert ("another run would come no further" in said) == (first == "sleep 600")


def test_the_time_limit_is_near(tmp_path: Path) -> None:
    """USR1: what runs may end in its own way, nothing else starts, and 75 asks for another run."""
    script = "trap 'echo leaving; exit 75' USR1; echo $$ >pid.JOB; while :; do sleep 0.05; done"
    launcher = subprocess.Popen(
        [RUN_PL, "--max-jobs-run", "1", "JOB=1:2", "u.JOB.log", "bash", "-c", quoted(script)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = wait_for_number(tmp_path / "pid.1")
    shell = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    for process in (pid, shell, launcher.pid):  # as slurm.pl signals all that is below
        os.kill(process, signal.SIGUSR1)
    assert launcher.wait(timeout=50) == 75
    launcher.communicate()
    assert output(tmp_path / "u.1.log") == ["leaving"]
    assert "# Ended (code 75)" in (tmp_path / "u.1.log").read_text()
    assert not (tmp_path / "u.2.log").exists()
