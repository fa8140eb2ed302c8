"""The command line: files that say what they are, pictures, and errors in one line."""

import json
from pathlib import Path

import pytest

from espnet_moe.bin.analyze import get_parser, main
from espnet_moe.errors import UserError


@pytest.fixture
def corpus(tmp_path: Path, make_datadir) -> Path:
    """Two languages with word timings and transcripts of two systems."""
    for code in ("hi", "it"):
        data = make_datadir(tmp_path / "raw" / f"test_{code}", {code: 12})
        durations = dict(line.split() for line in (data / "utt2dur").read_text().splitlines())
        texts = dict(line.split(maxsplit=1) for line in (data / "text").read_text().splitlines())
        timings = []
        for utt, seconds in durations.items():
            words = texts[utt].split()
            each = float(seconds) / len(words)
            timings += [f"{utt} 1 {i * each:.3f} {each:.3f} {w}\n" for i, w in enumerate(words)]
        (data / "words.ctm").write_text("".join(timings), encoding="utf-8")
        for system in ("baseline", "soft"):
            folder = tmp_path / "exp" / system / "greedy" / f"test_{code}"
            (folder / "logdir" / "output.1").mkdir(parents=True)
            lines = [f"{u} {t if system == 'soft' else t[:4]}\n" for u, t in texts.items()]
            (folder / "text").write_text("".join(lines), encoding="utf-8")
            stats = []
            for utt in texts:
                sure = {"hi": 0.8, "it": 0.2}
                route = {"languages": sure, "experts": sure, "gates": sure}
                entry = {"utt_id": utt, "language": "hi", "seconds_audio": float(durations[utt])}
                stats.append(json.dumps(entry | ({"route": route} if system == "soft" else {})))
            path = folder / "logdir" / "output.1" / "stats.jsonl"
            path.write_text("\n".join(stats) + "\n")
    return tmp_path


def run(corpus: Path, tiny_folder: Path, folders: dict[str, str], name: str) -> Path:
    """Run one analysis with what it needs; return its folder."""
    experts = ["--experts", *(f"{name}={folder}" for name, folder in folders.items())]
    data = [str(corpus / "raw" / f"test_{code}") for code in ("hi", "it")]
    passes = ["--backbone", str(tiny_folder), "--data", *data, "--utterances", "6"]
    passes += ["--device", "cpu"]
    decoded = ["--exp", str(corpus / "exp"), "--data_root", str(corpus / "raw")]
    decoded += ["--inference_tag", "greedy", "--systems", "baseline", "soft"]
    decoded += ["--test_sets", "test_hi", "test_it"]
    tree = corpus / "families.yaml"
    tree.write_text("Indo-Aryan: [hi]\nRomance: [it]\n")
    own = {
        "similarity": [*experts, *passes, "--families", str(tree), "--max_frames", "200"],
        "spectrum": experts,
        "layers": [*experts, *passes],
        "transfer": [*experts, *passes],
        "significance": decoded,
        "errors": [*decoded, "--train", f"hi={data[0]}"],
        "routing": decoded,
    }[name]
    main([name, "--out", str(corpus / "out"), *own])
    return corpus / "out"


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("similarity", {"cosine", "overlap", "cka", "dendrogram"}),
        ("spectrum", {"energy", "effective_rank"}),
        ("layers", {"places", "kinds"}),
        ("transfer", {"loss", "loss_gain", "wer", "wer_gain"}),
        ("significance", {"differences"}),
        ("errors", {"kinds"}),
        ("routing", {"usage", "gates", "calibration"}),
    ],
)
def test_what_is_written(corpus, tiny_folder, save_random, name, pictures, capsys):
    folders = save_random("hi", "it")
    out = run(corpus, tiny_folder, folders, name)
    content = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    told = ("title", "what", "method", "sources", "units", "results", "not_available", "command")
    assert content["name"] == name and all(key in content for key in told)
    assert content["command"].startswith(f"python -m espnet_moe.bin.analyze {name}")
    assert all(len(content[key]) > 0 for key in ("title", "what", "method", "sources", "units"))
    files = {p.name for p in out.iterdir()}
    wanted = {f"{name}_{picture}.{form}" for picture in pictures for form in ("png", "svg")}
    assert files == {f"{name}.json", *wanted}
    for picture in pictures:
        assert (out / f"{name}_{picture}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (out / f"{name}_{picture}.svg").read_text()
    assert f"{len(wanted)} pictures" in capsys.readouterr().out
    # The same again is the same, to the byte.
    before = {p.name: p.read_bytes() for p in out.glob("*.svg")}
    run(corpus, tiny_folder, folders, name)
    assert {p.name: p.read_bytes() for p in out.glob("*.svg")} == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["spectrum", "--experts", "hi"], "not NAME=FOLDER"),
        (["spectrum", "--experts", "hi=a", "hi=b"], "named twice"),
        (["spectrum", "--experts", "hi=nowhere"], "holds no whole expert"),
        (["similarity", "--experts", "hi=nowhere"], "at least 2"),
        (["transfer"], "give --backbone"),
        (["transfer", "--fixed", "hi=fixed_hi"], "needs --exp"),
        (["transfer", "--curves", "nowhere.tsv"], "nowhere.tsv cannot be read"),
        (["errors", "--exp", "nowhere", "--inference_tag", "x"], "results.json does not exist"),
        (["routing", "--exp", "nowhere", "--inference_tag", "x"], "results.json does not exist"),
    ],
)
def test_mistakes_are_named(words, told, tmp_path):
    with pytest.raises(UserError, match=told):
        main([*words, "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--resamples 0", "--resamples many", "--seed -1"])
def test_numbers_are_checked(option, capsys, tmp_path):
    words = f"significance --exp x --inference_tag y --out {tmp_path} {option}"
    with pytest.raises(SystemExit):
        get_parser().parse_args(words.split())
    assert "is no whole number" in capsys.readouterr().err


def test_a_family_tree_that_is_missing(corpus, save_random):
    folders = save_random("hi", "it")
    experts = [f"{name}={folder}" for name, folder in folders.items()]
    with pytest.raises(UserError, match="family tree nowhere cannot be read"):
        main(["similarity", "--out", str(corpus), "--experts", *experts, "--families", "nowhere"])


@pytest.mark.parametrize("name", ["similarity", "layers", "errors", "routing", "probing"])
def test_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit):
        get_parser().parse_args([name, "--help"])
    assert f"python -m espnet_moe.bin.analyze {name}" in capsys.readouterr().out
