"""Stage stamps: what makes a stage run again, and what does not."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from espnet_moe import stamps
from espnet_moe.bin import stage as command
from espnet_moe.stamps import Stage, StampError, State, check, commit


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stage with a text, a data dir, the audio of a wav.scp, and an output."""
    (tmp_path / "data").mkdir()
    (tmp_path / "conf.yaml").write_text("rank: 8\n")
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "data/wav.scp").write_text(f"a-1 {tmp_path}/a.wav\na-2 {tmp_path}/gone.wav\n")
    (tmp_path / "data/text").write_text("a-1 ciao\na-2 no\n")
    (tmp_path / "out").write_text("made\n")
    return Stage(
        options=["flac", "0.1"],
        inputs=[f"{tmp_path}/conf.yaml", f"{tmp_path}/data"],
        listed=[f"{tmp_path}/data/wav.scp"],
        outputs=[f"{tmp_path}/out"],
    )


@pytest.fixture
def stamp(tmp_path: Path, stage: Stage) -> Path:
    """The stamp of that stage, done."""
    path = tmp_path / ".done/stage.json"
    assert check(path, stage) == (State.TO_DO, "not done yet")
    commit(path)
    assert check(path, stage)[0] is State.DONE
    return path


def later(path: Path) -> None:
    """Give a file another time, as a writer of the same bytes would."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: (d / "conf.yaml").write_text("rank: 9\n"), "conf.yaml has changed"),
        (lambda d: (d / "data/text").write_text("a-1 ciaO\na-2 no\n"), "data/text has changed"),
        (lambda d: (d / "data/utt2lang").write_text("a-1 it\n"), "data/utt2lang has changed"),
        (lambda d: (d / "data/text").unlink(), "data/text has changed"),
        (lambda d: (d / "a.wav").write_bytes(b"RIFFF"), "audio of"),
        (lambda d: later(d / "a.wav"), "audio of"),
        (lambda d: (d / "gone.wav").write_bytes(b""), "audio of"),
        (lambda d: (d / "out").unlink(), "output missing"),
    ],
)
def test_what_makes_it_run_again(
    change: Callable[[Path], object], reason: str, stage: Stage, stamp: Path, tmp_path: Path
) -> None:
    change(tmp_path)
    state, why = check(stamp, stage)
    assert state is State.TO_DO
    assert reason in why


def test_new_time_of_the_same_text_does_not(stage: Stage, stamp: Path, tmp_path: Path) -> None:
    later(tmp_path / "conf.yaml")
    later(tmp_path / "data/text")
    assert check(stamp, stage)[0] is State.DONE


def test_large_file_by_size_and_time(
    stage: Stage, stamp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "MAX_HASHED_BYTES", 4)
    assert check(stamp, stage)[0] is State.TO_DO
    commit(stamp)
    later(tmp_path / "data/text")
    assert check(stamp, stage)[0] is State.TO_DO


def test_options_version_and_inputs(
    stage: Stage, stamp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = stamp.read_text()
    assert check(stamp, replace(stage, options=["wav", "0.1"]))[1] == "options have changed"
    stamp.write_text(written)
    more = replace(stage, inputs=[*stage.inputs, f"{tmp_path}/a.wav"])
    assert check(stamp, more)[1] == f"{tmp_path}/a.wav is new"
    stamp.write_text(written)
    monkeypatch.setattr(stamps, "__version__", "99")
    assert check(stamp, stage)[1].startswith("made by version")


def test_input_that_changes_while_the_stage_runs(stage: Stage, stamp: Path, tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text("rank: 9\n")
    assert check(stamp, stage)[0] is State.TO_DO
    (tmp_path / "conf.yaml").write_text("rank: 10\n")
    commit(stamp)
    assert check(stamp, stage)[0] is State.TO_DO


def test_interrupted_stage_goes_on_only_from_the_same_inputs(
    stage: Stage, stamp: Path, tmp_path: Path
) -> None:
    (tmp_path / "conf.yaml").write_text("rank: 9\n")
    assert check(stamp, stage)[0] is State.TO_DO
    assert check(stamp, stage)[0] is State.INTERRUPTED
    # Back to what the old outputs were made from: they may be half overwritten by now.
    (tmp_path / "conf.yaml").write_text("rank: 8\n")
    assert check(stamp, stage)[0] is State.TO_DO


def test_damaged_stamp_counts_as_none(stage: Stage, stamp: Path) -> None:
    stamp.write_text('{"version": ')
    assert check(stamp, stage)[0] is State.TO_DO


def test_errors(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "stamp.json"
    with pytest.raises(StampError, match="check the stage before it runs"):
        commit(path)
    with pytest.raises(StampError, match="input missing: gone, lost; run the stages before"):
        check(path, replace(stage, inputs=["gone", "lost"]))
    check(path, replace(stage, outputs=["nothing"]))
    with pytest.raises(StampError, match="has not made nothing"):
        commit(path)


def test_command_line(stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--stamp", str(tmp_path / "stage4.json")]
    asked = ["check", *words, "--inputs", *stage.inputs, "--options", "args=--max_epoch 4"]
    for code in (4, 3):  # 1 and 2 are those of a failure
        with pytest.raises(SystemExit) as ended:
            command.main(asked)
        assert ended.value.code == code
    command.main(["commit", *words])
    capsys.readouterr()
    command.main(asked)
    assert capsys.readouterr().out == "stage4: skipped: done, nothing has changed\n"


def test_nothing_heavy_is_imported() -> None:
    script = "import sys, espnet_moe.bin.stage; print(*sys.modules)"
    names = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "torch", "yaml", "tqdm", "espnet2"} & set(names)
