"""The cookbook: every page's blocks run, in order and word for word, in a folder as it assumes.

A page is one shell script: its bash blocks as they are, its python blocks as programs of their own,
but for those that begin with a file's name in a comment, which are saved under it.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md") if path.stem != "README")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SENTENCES = {
    "te": ["నమస్తే ప్రపంచం", "ఇది ఒక ఇల్లు", "నీళ్ళు తీసుకురా"],
    "hi": ["नमस्ते दुनिया", "यह एक घर है", "पानी लाओ"],
}


def script(text: str) -> str:
    """A page's blocks as one script."""
    parts = ["set -eo pipefail"]
    for language, code in BLOCK.findall(text):
        if language == "bash":
            parts.append(code)
        elif language == "python":
            name = re.match(r"# ([\w.]+)\n", code)
            # A script's folder is on its path; that of a program on stdin is not.
            start = f"cat > {name[1]}" if name else "PYTHONPATH=$PWD:$PYTHONPATH python -"
            parts.append(f"{start} <<'END OF THE BLOCK'\n{code}END OF THE BLOCK")
    return "\n".join(parts)


@pytest.fixture
def folder(
    tmp_path: Path,
    tiny_folder: Path,
    mixture,
    make_datadir: Callable[..., Path],
    make_backbone,
    speak,
) -> Path:
    """What docs/README.md says there is, small and random."""
    from mixtures import write_expert

    os.symlink(tiny_folder, tmp_path / "whisper_mini")
    for seed, split in enumerate(("train", "dev", "test")):
        for code in ("hi", "it", "pa"):
            made = make_datadir(tmp_path / f"dump/raw/{split}_{code}", {code: 5}, seed=seed)
            shutil.copy(made / "text", made / "text.raw")
    exp = tmp_path / "exp/whisper_mini"
    for code, path in mixture.experts.items():
        (exp / f"expert_{code}").mkdir(parents=True)
        os.symlink(path, exp / f"expert_{code}/expert")
    write_expert(make_backbone(), exp / "expert_te/expert", "te", 5)
    (exp / "router").mkdir()
    os.symlink(mixture.router, exp / "router/router")
    # The console script of this very tree, installed or not.
    (tmp_path / ".bin").mkdir()
    command = tmp_path / ".bin/espnet-moe"
    command.write_text('#!/bin/sh\nexec python -m espnet_moe.bin.main "$@"\n')
    command.chmod(0o755)
    (tmp_path / "LICENSE").write_text("Do what is right.\n")
    (tmp_path / "recordings").mkdir()
    for i, name in enumerate(("hi", "it", "te")):
        soundfile.write(tmp_path / f"recordings/{name}.wav", speak(0.8 + i / 3, i), 16000)
    write_corpora(tmp_path, speak)
    return tmp_path


def write_corpora(folder: Path, speak: Callable[[float, int], np.ndarray]) -> None:
    """Raw data dirs of Telugu, and a corpus that is a table and audio."""
    from espnet_moe.data.datadir import write_datadir
    from espnet_moe.data.utterance import Utterance

    clips = folder / "my_corpus"
    (clips / "audio").mkdir(parents=True)
    rows = ["file\tspeaker\tsplit\tsentence"]
    for seed, split in enumerate(("train", "dev", "test")):
        utterances = []
        for i in range(6):
            file = clips / "audio" / f"{split}{i}.wav"
            soundfile.write(file, speak(0.6 + 0.1 * i, 10 * seed + i), 22050)
            rows.append(f"audio/{file.name}\tA. {split}\t{split}\t{SENTENCES['hi'][i % 3]}।")
            text, speaker = SENTENCES["te"][i % 3], f"cv_{split}"
            utterances.append(Utterance(f"{speaker}-{i}", str(file), text, speaker, "te", split))
        write_datadir(folder / f"data/commonvoice_te_{split}", utterances)
    (clips / "clips.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page(folder: Path, page: str) -> None:
    text = script((DOCS / f"{page}.md").read_text("utf-8"))
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{folder}/.bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(folder / ".cache"),
            "CUDA_VISIBLE_DEVICES": "",
            "TQDM_DISABLE": "1",
        },
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_every_page_is_listed() -> None:
    listed = re.findall(r"\]\((\w+)\.md\)", (DOCS / "README.md").read_text("utf-8"))
    assert sorted(listed) == PAGES
    assert "(docs/README.md)" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("page", [*PAGES, "README"])
def test_links_and_blocks(page: str) -> None:
    """Links lead somewhere, and no block is of a kind that would not be run."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (DOCS / link).exists(), link
    blocks = BLOCK.findall(text)
    assert text.count("```") == 2 * len(blocks)
    assert {language for language, _ in blocks} <= {"bash", "python", "text"}
    assert page == "README" or blocks


def test_blocks_become_a_script(tmp_path: Path) -> None:
    page = (
        "# A\n```python\n# one.py\nX = 'a\"$b'\n```\n"
        "```bash\nexport Y=2\n```\n```text\nexit 1\n```\n"
        "```python\nimport os, one\nprint(one.X, os.environ['Y'])\n```\n"
    )
    command = ["bash", "-c", f"cd {shlex.quote(str(tmp_path))}; {script(page)}"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == 'a"$b 2\n', done.stderr
    failing = script("```python\nraise SystemExit(3)\n```\n```bash\necho on\n```\n")
    done = subprocess.run(["bash", "-c", failing], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (3, "")
