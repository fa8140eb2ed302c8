"""utils/slurm.pl against a real SLURM of one node."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLURM_PL = ROOT / "egs2/TEMPLATE/moe1/utils/slurm.pl"


class Cluster:
    """A recipe's folder, calls of slurm.pl in it, and SLURM's own commands."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = os.environ | env
        (folder / "conf").mkdir()
        shutil.copy(ROOT / "egs2/mini/moe1/conf/slurm.conf", folder / "conf")
        (folder / "path.sh").write_text("export FROM_PATH_SH=yes\n")
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        launcher = subprocess.Popen(
            [SLURM_PL, *words], cwd=self.folder, env=self.env, stdout=pipe, stderr=pipe, text=True
        )
        self.started.append(launcher)
        return launcher

    def run(self, *words: str, timeout: float = 60) -> tuple[int, str]:
        launcher = self.start(*words)
        said, warned = launcher.communicate(timeout=timeout)
        assert said == ""
        return launcher.returncode, warned

    def do(self, *words: str) -> str:
        return subprocess.run(
            words, env=self.env, check=True, capture_output=True, text=True
        ).stdout.strip()

    def lines(self, log: str) -> list[str]:
        """What the job itself has written."""
        text = (self.folder / log).read_text()
        return [line for line in text.splitlines() if not line.startswith("#")]

    def wait(self, happened: Callable[[], object], seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < until, self.do("squeue")
            time.sleep(0.05)

    def job_of(self, log: str) -> str:
        """SLURM's number of a job that has started."""
        path = self.folder / log
        self.wait(lambda: path.exists() and "# Started" in path.read_text())
        return path.read_text().splitlines()[0].rpartition(" job ")[2]


@pytest.fixture
def cluster(tmp_path: Path, slurm: dict[str, str]) -> Iterator[Cluster]:
    made = Cluster(tmp_path, slurm)
    yield made
    for launcher in made.started:
        if launcher.poll() is None:
            launcher.terminate()
            launcher.wait(timeout=90)


def test_success_and_log(cluster: Cluster) -> None:
    assert cluster.run("--mem", "100M", "deep/er/a.log", "echo", "$FROM_PATH_SH") == (0, "")
    lines = (cluster.folder / "deep/er/a.log").read_text().splitlines()
    assert lines[0].startswith(f"# Running on {os.uname().nodename}, job ")
    assert lines[1].startswith("# Started at ")
    assert lines[2] == "# echo $FROM_PATH_SH"
    assert cluster.lines("deep/er/a.log") == ["yes"]
    assert " with status 0, elapsed time " in lines[-1]
    assert not list((cluster.folder / "deep/er/q").glob("done.*"))


def test_failures_are_counted_and_the_first_is_shown(cluster: Cluster) -> None:
    job = ["echo", "job-JOB", ";", "[", "JOB", "-lt", "3", "]"]
    code, warned = cluster.run("JOB=1:4", "j.JOB.log", *job)
    assert code == 1
    assert "slurm.pl: 2 / 4 failed, log is in j.*.log" in warned
    assert "job-3" in warned and "job-4" not in warned
    assert cluster.lines("j.2.log") == ["job-2"]
    assert "with status 1" in (cluster.folder / "j.4.log").read_text()


def test_array_over_words(cluster: Cluster) -> None:
    cluster.run("LANG=hi,it", "--num-threads", "1", "exp_LANG/t.log", "echo", "LANG")
    assert cluster.lines("exp_hi/t.log") == ["hi"]
    assert cluster.lines("exp_it/t.log") == ["it"]


def test_quoting(cluster: Cluster) -> None:
    words = ["a b", "it's so", 'say "hi" now', 'it\'s "both" ways', "a | b > c", "JOB is", ""]
    cluster.run("JOB=7", "q.JOB.log", "printf", "[%s]\\\\n", *words)
    said = [word.replace("JOB", "7") for word in words]
    assert cluster.lines("q.7.log") == [f"[{word}]" for word in said]
    pipe = ["echo", "ciao", "|", "tr", "a-z", "A-Z", ">", "out", "&&", "echo", "done"]
    assert cluster.run("p.log", *pipe) == (0, "")
    assert (cluster.folder / "out").read_text() == "CIAO\n"
    assert cluster.run("f.log", "false", "|", "cat")[0] == 1


def test_an_array_of_twenty_four_at_a_time(cluster: Cluster) -> None:
    """The node has fewer cores than that here; SLURM itself tells what was asked for."""
    launcher = cluster.start("--max-jobs-run", "4", "JOB=1:20", "a.JOB.log", "sleep", "0.05")
    listed: list[str] = []
    cluster.wait(lambda: listed.append(cluster.do("squeue", "-ho", "%i")) or "[" in listed[-1])
    assert "%4]" in listed[-1]
    assert launcher.wait(timeout=90) == 0
    for job in range(1, 21):
        assert "with status 0" in (cluster.folder / f"a.{job}.log").read_text()


def test_a_cancelled_job(cluster: Cluster) -> None:
    launcher = cluster.start("JOB=1:2", "c.JOB.log", "bash", "-c", "[ JOB = 1 ] || sleep 600")
    cluster.do("scancel", cluster.job_of("c.2.log"))
    warned = launcher.communicate(timeout=90)[1]
    assert launcher.returncode == 1
    assert "1 / 2 failed" in warned
    assert "cancelled" in warned


def test_a_command_that_hears_of_the_end_first(cluster: Cluster) -> None:
    """SLURM signals one process after the other, and the script is the last to hear of it."""
    launcher = cluster.start("h.log", "echo", "$BASHPID", ">pid.h", "&&", "sleep", "600")
    cluster.job_of("h.log")
    file = cluster.folder / "pid.h"
    cluster.wait(lambda: file.exists() and file.read_text().strip())
    command = file.read_text().strip()
    script = cluster.do("ps", "-o", "ppid=", "-p", command)
    cluster.do("pkill", "-TERM", "-P", command)  # sleep
    cluster.wait(lambda: not Path(f"/proc/{command}").exists())
    time.sleep(0.5)  # the script knows that its command has ended, and would be gone by now
    os.kill(int(script), signal.SIGTERM)
    warned = launcher.communicate(timeout=90)[1]
    assert launcher.returncode == 1
    assert "preempted or cancelled" in warned


def test_a_killed_job(cluster: Cluster) -> None:
    """The job's script with all it has started: nobody is left to say how it ended."""
    launcher = cluster.start("k.log", "echo", "$BASHPID", ">pid", "&&", "sleep", "600")
    job = cluster.job_of("k.log")
    child = cluster.folder / "pid"
    cluster.wait(lambda: child.exists() and child.read_text().strip())
    parent = cluster.do("ps", "-o", "ppid=", "-p", child.read_text().strip())
    os.kill(int(parent), signal.SIGKILL)
    os.kill(int(child.read_text()), signal.SIGKILL)
    warned = launcher.communicate(timeout=90)[1]
    assert launcher.returncode == 1
    assert f"job {job} is gone without a word" in warned
    assert "gone without a word" in (cluster.folder / "k.log").read_text()


def test_a_killed_command(cluster: Cluster) -> None:
    assert cluster.run("b.log", "kill", "-9", "$BASHPID")[0] == 1
    assert "with status 137" in (cluster.folder / "b.log").read_text()


def test_a_drained_node(cluster: Cluster) -> None:
    """Jobs that run may end; others wait until it is back, and slurm.pl says for what."""
    node = cluster.do("sinfo", "-hNo", "%n")
    release = cluster.folder / "go"
    first = cluster.start("d1.log", "bash", "-c", "while [ ! -e go ]; do sleep 0.1; done")
    cluster.job_of("d1.log")
    cluster.do("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    try:
        second = cluster.start("d2.log", "echo", "late")
        release.touch()
        assert first.wait(timeout=90) == 0
        cluster.wait(lambda: "PENDING" in cluster.do("squeue", "-ho", "%T"))
        until = time.monotonic() + 90
        while (q := cluster.do("squeue", "-ho", "%r")) in ("None", "Resources", "Priority"):
            assert time.monotonic() < until, q
            time.sleep(0.1)
        time.sleep(8)  # slurm.pl asks seldom, and must have seen it
        assert not (cluster.folder / "d2.log").exists()
    finally:
        cluster.do("scontrol", "update", f"NodeName={node}", "State=RESUME")
    warned = second.communicate(timeout=90)[1]
    assert second.returncode == 0
    assert " waits: " in warned
    assert cluster.lines("d2.log") == ["late"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cancels(cluster: Cluster, number: signal.Signals) -> None:
    launcher = cluster.start("JOB=1:3", "s.JOB.log", "sleep", "600")
    cluster.job_of("s.1.log")
    launcher.send_signal(number)
    warned = launcher.communicate(timeout=90)[1]
    assert launcher.returncode == 2
    assert f"ended by {number.name}" in warned and "cancelled" in warned
    cluster.wait(lambda: cluster.do("squeue", "-h") == "")


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        (None, ["--config", "none.conf"], "cannot read the configuration none.conf"),
        ("option mem=* --mem $0", [], "has no line 'command sbatch ...'"),
        ("command sbatch\nwhat=1", [], "'what=1' is no line of command, option or default"),
        ("command sbatch", ["--time", "1:0:0"], "--time 1:0:0: conf/slurm.conf has no line for it"),
        ("command sbatch\noption gpu=0", ["--gpu", "2"], "--gpu 2: conf/slurm.conf has no line"),
        ("command sbatch --partition nowhere", [], "sbatch refused the job: "),
        (None, ["--gpus", "1"], "option --gpus is unknown; legal: --after --config --detach --gpu"),
    ],
)
def test_mistakes(cluster: Cluster, config: str | None, words: list[str], message: str) -> None:
    if config is not None:
        (cluster.folder / "conf/slurm.conf").write_text(config + "\n")
    code, warned = cluster.run(*words, "a.log", "true")
    assert code == 1
    assert message in warned


def test_an_exact_value_comes_before_any(cluster: Cluster) -> None:
    (cluster.folder / "conf/slurm.conf").write_text(
        "command sbatch # a comment\n"
        "default gpu=0\n"
        "option gpu=* --gres gpu:$0\n"
        "option gpu=0 --job-name cpu-only --comment '$0'\n"
    )
    launcher = cluster.start("e.log", "sleep", "1")
    cluster.job_of("e.log")
    assert cluster.do("squeue", "-ho", "%j") == "cpu-only"
    assert launcher.wait(timeout=90) == 0


def test_two_hundred_jobs(cluster: Cluster) -> None:
    """All outcomes are right, none is lost; every fifth fails."""
    job = ["echo", "JOB", "&&", "[", "$((JOB % 5))", "!=", "0", "]"]
    code, warned = cluster.run("JOB=1:200", "n.JOB.log", *job, timeout=600)
    assert code == 1
    assert "slurm.pl: 40 / 200 failed" in warned
    for number in range(1, 201):
        text = (cluster.folder / f"n.{number}.log").read_text()
        assert cluster.lines(f"n.{number}.log") == [str(number)]
        assert f"with status {int(number % 5 == 0)}," in text


def test_queued_again_after_a_signal(cluster: Cluster) -> None:
    """A command that ends with 75 goes on in the next run of the same job, with the same log."""
    script = "if [ -e seen ]; then echo again; else touch seen; trap 'exit 75' USR1; "
    script += "while :; do sleep 0.1; done; fi"
    launcher = cluster.start("r.log", "bash", "-c", script)
    job = cluster.job_of("r.log")
    cluster.wait((cluster.folder / "seen").exists)
    cluster.do("scancel", "--signal=USR1", "--batch", job)
    assert launcher.wait(timeout=600) == 0, (cluster.folder / "r.log").read_text()
    text = (cluster.folder / "r.log").read_text()
    assert "the time limit is near (USR1); to be queued again" in text
    assert cluster.lines("r.log")[-1] == "again"
    assert text.count("# Started at") == 2


def test_a_preempted_command_that_knows_no_signals(cluster: Cluster) -> None:
    """SLURM runs it again; that the first run was ended is no failure."""
    script = "if [ -e seen ]; then echo again; else touch seen; exec sleep 600; fi"
    launcher = cluster.start("p.log", "bash", "-c", script)
    job = cluster.job_of("p.log")
    cluster.wait((cluster.folder / "seen").exists)
    cluster.do("scontrol", "requeue", job)
    assert launcher.wait(timeout=600) == 0, (cluster.folder / "p.log").read_text()
    text = (cluster.folder / "p.log").read_text()
    assert "preempted or cancelled (TERM)" in text
    assert cluster.lines("p.log")[-1] == "again"


def test_a_training_that_is_preempted_half_way(
    cluster: Cluster, train_args: Callable[..., list[str]]
) -> None:
    """Requeued by SLURM inside an epoch, it learns what an undisturbed one does."""
    import torch

    epochs = ["--max_epoch", "60", "--keep_nbest_models", "1"]
    for folder in ("calm", "requeued"):
        words = train_args(cluster.folder / folder, *epochs)
        launcher = cluster.start(
            f"{folder}.log", sys.executable, "-m", "espnet_moe.bin.train", *words
        )
        if folder == "requeued":
            job = cluster.job_of("requeued.log")
            cluster.wait((cluster.folder / folder / "latest.pth").exists, seconds=600)
            cluster.do("scontrol", "requeue", job)
        assert launcher.wait(timeout=600) == 0, (cluster.folder / f"{folder}.log").read_text()
    log = (cluster.folder / "requeued.log").read_text()
    assert log.count("# Started at") == 2
    assert "SIGTERM (preempted or cancelled): checkpoint written after iteration" in log
    assert "resumed from" in log
    calm, requeued = (
        torch.load(cluster.folder / folder / "60epoch.pth", weights_only=True)
        for folder in ("calm", "requeued")
    )
    assert calm.keys() == requeued.keys()
    assert all(torch.equal(calm[name], requeued[name]) for name in calm)
