"""Stage 6 from the command line: experts by language and by clusters, and every refusal."""

import json
import subprocess
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import yaml

from espnet_moe.bin import assign_experts as command
from espnet_moe.clustering.embeddings import data_digest
from espnet_moe.data.datadir import load_datadir, read_datadir, write_datadir
from espnet_moe.data.memberships import read_utt2experts
from espnet_moe.data.utterance import Utterance
from espnet_moe.errors import UserError
from espnet_moe.files import sha256

CENTRES = {"hi": (0, 0), "it": (20, 0), "te": (0, 20)}


def write_set(path: Path, language: str, speakers: int) -> None:
    utterances = [
        Utterance(f"{path.name}{s:02d}-{i}", "/x.wav", "x", f"{path.name}{s:02d}", language, "x")
        for s in range(speakers)
        for i in range(4)
    ]
    samples = {utt.utt_id: 16000 + 100 * i for i, utt in enumerate(utterances)}
    write_datadir(path, utterances, num_samples=samples)


def write_embeddings(
    data: Path, folder: Path, ids: list[str] | None = None, digest: str = "a" * 64, layer: int = 2
) -> None:
    """Points around their language's centre, in the format of the embedding stage."""
    utterances = read_datadir(data)
    rng = np.random.default_rng(sum(map(ord, data.name)))
    rows = {
        utt.utt_id: np.array(CENTRES[utt.language] + (0, 0), np.float32)
        + rng.normal(0, 1, 4).astype(np.float32)
        for utt in utterances
    }
    if ids is not None:
        rows = {key: next(iter(rows.values())) for key in ids}
    folder.mkdir(parents=True, exist_ok=True)
    kaldiio.save_ark(str(folder / "embeddings.ark"), rows, scp=str(folder / "embeddings.scp"))
    facts = {"format": 1, "base_digest": digest, "layer": layer, "pooling": "mean"}
    facts |= {"context": "variable", "dim": 4, "count": len(rows)}
    facts |= {"data_digest": data_digest(data), "sha256": sha256(folder / "embeddings.ark")}
    (folder / "embeddings.json").write_text(json.dumps(facts))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for language in CENTRES:
        for split, speakers in {"train": 10, "dev": 2, "test": 2}.items():
            name = f"{split}_{language}"
            write_set(tmp_path / name, language, speakers)
            write_embeddings(tmp_path / name, tmp_path / "emb" / name)
    return tmp_path


def run(work: Path, by: str, conf: dict | None = None, *more: str) -> dict:
    (work / "conf.yaml").write_text(yaml.safe_dump(conf or {}))
    argv = ["--experts_by", by, "--config", str(work / "conf.yaml"), "--out", str(work / "out")]
    for split in ("train", "dev", "test"):
        argv += [f"--{split}", *(str(work / f"{split}_{language}") for language in CENTRES)]
    if by != "language":
        argv += ["--embeddings", str(work / "emb")]
    command.main([*argv, *more])
    return json.loads((work / "out/experts.json").read_text())


def refused(work: Path, by: str, conf: dict | None = None, *more: str) -> str:
    with pytest.raises(UserError) as error:
        run(work, by, conf, *more)
    assert not (work / "out").exists()
    return str(error.value)


def test_by_language(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(work, "language", {"fraction": 0.3})
    assert "3 experts: hi (40) it (40) te (40)" in capsys.readouterr().out
    assert made["experts"] == made["languages"] == ["hi", "it", "te"]
    assert made["language_shares"]["it"] == {"it": 1.0} and "layer" not in made
    assert made["report"]["nmi"] == 1
    table = read_utt2experts(work / "out/utt2experts", made["experts"])
    assert len(table) == 3 * 4 * 14 and table["test_te01-3"] == {"te": 1.0}
    for name in made["experts"]:
        assert made["fractions"][name] == pytest.approx(0.3, abs=0.05)
        assert {u.language for u in read_datadir(work / f"out/data/train_{name}")} == {name}
    assert len(read_datadir(work / "out/data/train_router")) == 120


@pytest.mark.parametrize(
    ("by", "conf"),
    [
        ("kmeans", {"candidates": [2, 3, 4]}),
        ("gmm", {"count": 3}),
        ("hdbscan", {"clusterer": {"min_cluster_size": 10}, "noise": "drop"}),
    ],
)
def test_by_clusters(work: Path, by: str, conf: dict) -> None:
    conf["reduction"] = {"method": "pca", "dims": 2, "standardise": False}
    more = ("--backbone_digest", "a" * 64, "--layer", "2")
    made = run(work, by, conf, *more)
    assert made["experts"] == ["c0", "c1", "c2"] and made["experts_by"] == by
    assert (made["base_digest"], made["layer"]) == ("a" * 64, 2)
    assert made["report"]["purity"] == pytest.approx(1) and made["settings"]["fraction"] == 0.3
    assert made["clusters"]["clusters"] == 3
    assert set(made["silhouette"]) == ({"2", "3", "4"} if "candidates" in conf else set())
    shares = [next(iter(share)) for share in made["language_shares"].values()]
    assert sorted(shares) == ["hi", "it", "te"]
    table = read_utt2experts(work / "out/utt2experts", made["experts"])
    expert_of = dict(zip(shares, made["experts"]))
    for language in CENTRES:  # what was not clustered lands where its like is
        for utt in read_datadir(work / f"test_{language}"):
            assert set(table[utt.utt_id]) == {expert_of[language]}
    router = load_datadir(work / "out/data/train_router")
    assert (
        len(router.utterances) + made["dropped"]
        == 120
        == len(router.skipped) + len(router.utterances)
    )


def test_again_is_the_same_and_older_sets_go(work: Path) -> None:
    conf = {"count": 3, "reduction": {"dims": 2}}
    run(work, "kmeans", {**conf, "count": 5, "hard": False, "top_k": 2})
    assert (work / "out/data/train_c4").is_dir()
    first = run(work, "kmeans", conf)
    assert not (work / "out/data/train_c4").exists()
    text = (work / "out/data/train_c1/text").read_text()
    assert run(work, "kmeans", conf) == first
    assert (work / "out/data/train_c1/text").read_text() == text


def test_embeddings_of_another_base_layer_or_data(work: Path) -> None:
    said = refused(work, "kmeans", {}, "--backbone_digest", "b" * 64, "--layer", "1")
    assert "bbbb" in said and "layer 2 against 1" in said
    write_embeddings(work / "dev_hi", work / "emb/dev_hi", layer=3)
    assert "layer 3 against 2" in refused(work, "kmeans")
    write_embeddings(work / "dev_hi", work / "emb/dev_hi", ids=["x-1", "dev_hi00-0"])
    (work / "emb/test_it/embeddings.json").unlink()
    said = refused(work, "kmeans")  # both at once
    assert "1 unknown ids, which" in said and "x-1" in said
    assert "7 utterances of" in said and "dev_hi00-1" in said
    assert "test_it holds no whole set" in said


def test_embeddings_of_audio_that_has_changed(work: Path) -> None:
    path = work / "train_it/utt2num_samples"
    path.write_text(path.read_text().replace(" 16000\n", " 15000\n"))
    assert "another than was embedded" in refused(work, "kmeans")


def test_options_and_data_are_refused_before_anything_is_written(work: Path) -> None:
    said = refused(work, "language", {"count": 3, "top_k": 1})
    assert "unknown key(s) count, top_k" in said and "legal keys: fraction, seed" in said
    said = refused(work, "kmeans", {"clusterer": {"restart": 1}, "reduction": {"dims": 0}})
    assert "unknown key(s) restart" in said and "dims is at least 1" in said
    assert "leave count, candidates out" in refused(work, "hdbscan", {"count": 3})
    assert "choose one of language, kmeans" in refused(work, "kmean")
    assert "top_k is 4, but there are 3 experts" in refused(
        work, "kmeans", {"count": 3, "hard": False, "top_k": 4, "reduction": {"dims": 2}}
    )
    assert "in both --train and --test" in refused(
        work, "language", {}, "--test", str(work / "train_hi")
    )
    said = refused(work, "language", {}, "--train", str(work / "train_hi"))
    assert "no training utterance for it, te" in said


def test_embeddings_are_needed_for_clusters(work: Path) -> None:
    with pytest.raises(UserError, match="need --embeddings"):
        argv = ["--train", str(work / "train_hi"), "--dev", str(work / "dev_hi")]
        command.main(["--experts_by", "kmeans", *argv, "--out", str(work / "out")])


def test_languages_need_neither_torch_nor_sklearn(work: Path) -> None:
    argv = ["--train", str(work / "train_hi"), "--dev", str(work / "dev_hi")]
    script = (
        "import sys; from espnet_moe.bin.assign_experts import main; main(sys.argv[1:]);"
        "print(sorted({'torch', 'sklearn', 'hdbscan'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *argv, "--out", str(work / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
