"""The console script: what it prints and writes, and how it ends."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from espnet_moe.bin import main as command
from espnet_moe.errors import UserError
from espnet_moe.packing import packages
from espnet_moe.packing.contents import Parts
from espnet_moe.packing.packages import pack_model

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("transcribe", "info", "experts", "merge", "convert", "pack")


@pytest.fixture(scope="module")
def model(mixture, tmp_path_factory):
    """A packed model's archive; that it is proven has a test of its own."""
    folder = tmp_path_factory.mktemp("main")
    parts = Parts(
        mixture.backbone, ROOT / "LICENSE", mixture.experts, mixture.router, options=mixture.options
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "require_same", lambda *_: None)
        return pack_model(parts, folder / "model.zip", device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def files(recordings, tmp_path):
    made = [tmp_path / f"ਰਿਕਾਰਡ {i}.wav" for i in range(3)]
    for path, x in zip(made, recordings):
        soundfile.write(path, x, 16000, subtype="FLOAT")
    return made


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "espnet_moe.bin.main", *map(str, words)],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def test_transcribe(model, files, recordings):
    """In a process of its own, whose streams would be ASCII if it were not for the command."""
    from espnet_moe import Speech2Text

    words = ["transcribe", *files, "nowhere.wav", "--model", model]
    done = run(*words, LC_ALL="C", PYTHONIOENCODING="ascii")
    want = Speech2Text.from_pretrained(model, "cpu")(recordings[:3])
    lines = done.stdout.decode("utf-8").splitlines()
    assert lines == [f"{path}\t{result.text}" for path, result in zip(files, want)]
    assert done.returncode == 1
    errors = done.stderr.decode("utf-8")
    assert "nowhere.wav does not exist" in errors and "1 of 4 files failed" in errors
    assert "it/s" not in errors and "%|" not in errors, "no bars but on a terminal"


def test_wishes_reach_the_model(model, files, recordings, capsys):
    from espnet_moe import Speech2Text

    loaded = Speech2Text.from_pretrained(model, "cpu")
    for words, wishes in (
        (["--language", "pa"], {"language": "pa"}),
        (["--allowed", "hi,it", "--strategy", "soft"],
         {"languages": ["hi", "it"], "strategy": "soft"}),
        (["--expert", "it", "--beam_size", "2"], {"expert": "it", "beam_size": 2}),
    ):  # fmt: skip
        command.main(
            ["transcribe", str(files[2]), "--model", str(model), "--format", "json", *words]
        )
        told, want = json.loads(capsys.readouterr().out), loaded(recordings[2], **wishes)
        assert told["tokens"] == list(want.tokens) and told["gates"] == want.gates


@pytest.mark.parametrize("kind", command.FORMATS)
def test_a_file_each(model, files, tmp_path, kind):
    command.main(["transcribe", *map(str, files), "--model", str(model), "--format", kind,
                  "--out", str(tmp_path / "out")])  # fmt: skip
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == [f"{path.stem}.{kind}" for path in files]
    assert all((tmp_path / "out" / name).read_text("utf-8") for name in written)


def test_formats_are_those_that_are_written():
    from espnet_moe.inference.formats import FORMATS

    assert tuple(FORMATS) == command.FORMATS


def test_wrong_wishes(model, files, tmp_path):
    with pytest.raises(UserError, match="this model has no language 'xx'"):
        command.main(["transcribe", str(files[0]), "--model", str(model), "--language", "xx"])
    with pytest.raises(UserError, match="srt of several files are several files: give --out"):
        command.main(["transcribe", *map(str, files), "--model", str(model), "--format", "srt"])
    twice = [str(files[0]), str(tmp_path / "b" / files[0].name)]
    with pytest.raises(UserError, match="two of the files have one name"):
        command.main(["transcribe", *twice, "--model", str(model), "--out", str(tmp_path)])


def test_info_and_experts(model, mixture, capsys):
    command.main(["info", str(model)])
    told = capsys.readouterr().out
    assert "router: linear on encoder layer 1, strategy hard, languages hi it pa" in told
    assert len(re.findall(r"^  (hi|it|pa)\tlanguages \1\trank 4\t", told, re.MULTILINE)) == 3
    command.main(["experts", str(model), str(mixture.extra)])
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [
        "hi",
        "it",
        "pa",
        "en",
    ]


def test_merge_and_convert(model, make_backbone, tiny_folder, recordings, tmp_path):
    peft = pytest.importorskip("peft")
    from espnet_moe import Speech2Text

    command.main(["merge", str(model), "--name", "it", "--out", str(tmp_path / "merged")])
    merged = Speech2Text(tmp_path / "merged", device="cpu")
    packed = Speech2Text.from_pretrained(model, "cpu")
    merged.options = packed.options
    got = [r.tokens for r in merged(recordings, language="it")]
    assert got == [r.tokens for r in packed(recordings, language="it")]
    wrapped = peft.get_peft_model(
        make_backbone().hf, peft.LoraConfig(r=4, target_modules=["q_proj"], use_rslora=True)
    )
    wrapped.save_pretrained(tmp_path / "peft")
    words = ["convert", str(tmp_path / "peft"), "--backbone", str(tiny_folder), "--name", "te"]
    command.main([*words, "--languages", "te,hi", "--out", str(tmp_path / "te")])
    manifest = json.loads((tmp_path / "te" / "expert.json").read_text())
    assert manifest["languages"] == ["te", "hi"] and manifest["context"] == "padded"
    assert manifest["source"]["format"] == "peft"
    with pytest.raises(UserError, match="te is there already"):
        command.main([*words, "--out", str(tmp_path / "te")])
    with pytest.raises(UserError, match="is an expert already"):
        command.main(["convert", str(tmp_path / "te"), *words[2:], "--out", str(tmp_path / "x")])
    with pytest.raises(UserError, match=r"holds no adapter_config.json"):
        command.main(["convert", str(tmp_path), *words[2:], "--out", str(tmp_path / "x")])


def test_pack(mixture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(packages, "require_same", lambda *_: None)
    words = ["--backbone", mixture.backbone, "--licence", str(ROOT / "LICENSE"), "--device", "cpu"]
    words += ["--experts", f"en={mixture.extra}"]
    command.main(["pack", "expert", *words, "--name", "en", "--out", str(tmp_path / "en.zip")])
    assert capsys.readouterr().out == f"written: {tmp_path / 'en.zip'}\n"
    with pytest.raises(UserError, match="hub needs --name: <owner>/<model>"):
        command.main(["pack", "hub", *words, "--out", str(tmp_path / "hub")])


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help(words):
    """At once, with an example; so before torch is imported."""
    began = time.perf_counter()
    done = run(*words, "--help")
    assert done.returncode == 0 and time.perf_counter() - began < 1.0
    assert b"Example:\n  espnet-moe " in done.stdout


def test_usage_errors():
    for words in (
        [],
        ["transcribe"],
        ["nonsense"],
        ["transcribe", "a", "--model", "m", "--fo", "x"],
    ):
        done = run(*words)
        assert done.returncode == 2 and b"usage: espnet-moe" in done.stderr
