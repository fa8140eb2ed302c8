"""Embeddings on disk: what the router sees, whole or absent, and of this base only."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import pytest
import soundfile
import torch

from espnet_moe.bin import embed as embed_bin
from espnet_moe.clustering import embeddings as module
from espnet_moe.clustering.embeddings import (
    ARK,
    MANIFEST,
    SCP,
    EmbeddingError,
    Embeddings,
    data_digest,
    extract_embeddings,
    join_embeddings,
    read_embeddings,
    require_embeddings,
)
from espnet_moe.config import ConfigError
from espnet_moe.routing.pooling import pool


@pytest.fixture
def data(make_datadir: Callable[..., Path], tmp_path: Path) -> Path:
    return make_datadir(tmp_path / "data" / "train_x", {"hi": 4, "it": 3}, seed=4)


def extract(backbone: Any, data: Path, out: Path, **more: Any) -> Embeddings:
    settings = {"layer": 1, "pooling": "mean_std", "batch_size": 3, "device": "cpu"} | more
    extract_embeddings(backbone, datadir=data, out=out, **settings)
    return read_embeddings(out)


def by_hand(frames: np.ndarray, pooling: str) -> np.ndarray:
    mean = frames.mean(axis=0)
    return mean if pooling == "mean" else np.concatenate([mean, frames.std(axis=0)])


@pytest.mark.parametrize("context", ["variable", "padded"])
@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
@pytest.mark.parametrize("layer", [0, 2])
def test_embedding_is_what_the_router_pools_alone_or_in_a_batch(
    make_backbone: Callable[..., Any],
    data: Path,
    tmp_path: Path,
    layer: int,
    pooling: str,
    context: str,
) -> None:
    backbone = make_backbone(context)
    found = extract(backbone, data, tmp_path / "emb", layer=layer, pooling=pooling)
    assert found.values.shape == (7, 32 if pooling == "mean" else 64)
    assert found.values.dtype == np.float32
    wavs = [soundfile.read(data / "wavs" / f"{u}.wav", dtype="float32")[0] for u in found.ids]
    assert len({len(w) for w in wavs}) > 3
    with torch.inference_mode():
        alone = [
            backbone.encode_lower(torch.from_numpy(w)[None], torch.tensor([len(w)]), layer)
            for w in wavs
        ]
        router = torch.cat([pool(x.hidden.float(), x.spoken, pooling) for x in alone])
    np.testing.assert_allclose(found.values, router.numpy(), atol=1e-5, rtol=1e-5)
    # 20 ms frames of speech, without the silence that the padded context adds up to 30 s.
    spoken = [-(-len(w) // 320) for w in wavs]
    hand = [by_hand(x.hidden[0, :n].double().numpy(), pooling) for x, n in zip(alone, spoken)]
    np.testing.assert_allclose(found.values, hand, atol=1e-4, rtol=1e-4)
    assert found.values.std(axis=0).max() > 1e-3  # utterances differ


def test_files_and_manifest(
    backbone: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = extract(backbone, data, Path("out with space/train_x"))
    folder = tmp_path / "out with space" / "train_x"
    assert {p.name for p in folder.iterdir()} == {ARK, SCP, MANIFEST}
    ids = [line.split()[0] for line in (data / "wav.scp").read_text().splitlines()]
    assert list(found.ids) == sorted(ids) == ids
    manifest = json.loads((folder / MANIFEST).read_text())
    assert {k: manifest[k] for k in ("base_digest", "layer", "pooling", "context")} == {
        "base_digest": backbone.digest(),
        "layer": 1,
        "pooling": "mean_std",
        "context": "variable",
    }
    assert (manifest["dim"], manifest["count"]) == (64, 7)
    assert manifest["data_digest"] == data_digest(data)
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    for i, (key, row) in enumerate(kaldiio.load_scp_sequential(str(folder / SCP))):
        assert key == found.ids[i]
        np.testing.assert_array_equal(row, found.values[i])
    assert kaldiio.load_scp(str(folder / SCP))[ids[3]] == pytest.approx(found.values[3])
    moved = folder.rename(tmp_path / "moved")
    np.testing.assert_array_equal(read_embeddings(moved).values, found.values)


def test_an_interrupted_extraction_leaves_no_set_and_an_earlier_one_whole(
    backbone: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = module.embed, []

    def stop(*args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    new, old = tmp_path / "new", tmp_path / "old"
    before = extract(backbone, data, old, layer=2)
    monkeypatch.setattr(module, "embed", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(backbone, data, new)
    assert list(new.iterdir()) == []
    with pytest.raises(EmbeddingError, match="no whole set of embeddings: embeddings.ark"):
        read_embeddings(new)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        extract(backbone, data, old)
    after = read_embeddings(old)
    assert after.layer == 2
    np.testing.assert_array_equal(after.values, before.values)


def test_a_replacement_that_stops_between_its_files_is_no_whole_set(
    backbone: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(backbone, data, tmp_path / "emb", layer=2)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_table", stop)
        with pytest.raises(KeyboardInterrupt):
            extract(backbone, data, tmp_path / "emb")
    with pytest.raises(EmbeddingError, match="embeddings.json missing"):
        read_embeddings(tmp_path / "emb")
    assert extract(backbone, data, tmp_path / "emb").layer == 1


def test_damaged_sets_are_refused(backbone: Any, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "emb"
    extract(backbone, data, folder)
    whole = {name: (folder / name).read_bytes() for name in (ARK, SCP, MANIFEST)}

    def expect(name: str, content: bytes, message: str) -> None:
        (folder / name).write_bytes(content)
        with pytest.raises(EmbeddingError, match=message):
            read_embeddings(folder)
        (folder / name).write_bytes(whole[name])

    lines = whole[SCP].splitlines(keepends=True)
    manifest = json.loads(whole[MANIFEST])

    def changed(**facts: Any) -> bytes:
        return json.dumps(manifest | facts).encode()

    expect(ARK, whole[ARK][:-9], "SHA-256 differs")
    expect(SCP, b"".join(lines[1:]), "7 utterances, embeddings.scp of 6, embeddings.ark of 7, 6")
    expect(SCP, b"x" + whole[SCP], "of 7, 6 of them the same")
    expect(SCP, b"".join([*lines[:-1], lines[0]]), "of 7, 6 of them the same")
    expect(MANIFEST, b"{", "is not JSON")
    expect(MANIFEST, b"[]", "format None; this version reads format 1")
    expect(MANIFEST, changed(format=2), "format 2; this version reads format 1")
    expect(MANIFEST, changed(count=8), "tells of 8 utterances")
    expect(MANIFEST, changed(dim=63), "has 64 values, embeddings.json tells of 63")
    expect(MANIFEST, b'{"format": 1, "dim": 3}', "has no base_digest, layer, pooling, context")
    assert read_embeddings(folder).ids


def test_embeddings_of_something_else_are_refused_naming_both_sides(
    backbone: Any, data: Path, tmp_path: Path
) -> None:
    found = extract(backbone, data, tmp_path / "emb")
    require_embeddings(found, backbone.digest(), 1, "variable", "mean_std")
    require_embeddings(found)
    with pytest.raises(EmbeddingError) as caught:
        require_embeddings(found, "f" * 64, 2, "padded")
    message = str(caught.value)
    assert f"base [{backbone.digest()[:12]}] against [ffffffffffff]" in message
    assert "layer 1 against 2; context variable against padded" in message
    assert str(tmp_path / "emb") in message
    with pytest.raises(EmbeddingError, match="pooling mean_std against mean"):
        require_embeddings(found, pooling="mean")


def small(ids: str, seed: int = 0, **facts: Any) -> Embeddings:
    keys = tuple(ids.split())
    values = np.random.default_rng(seed).random((len(keys), 3), dtype=np.float32)
    base = Embeddings(keys, values, "d" * 64, 1, "mean", "variable", f"emb/{seed}")
    return dataclasses.replace(base, **facts)


def test_rows_in_the_order_asked_for() -> None:
    found = small("a-1 a-2 b-1")
    np.testing.assert_array_equal(found.rows(["b-1", "a-1"]), found.values[[2, 0]])
    with pytest.raises(EmbeddingError, match="2 utterances have no embedding in emb/0"):
        found.rows(["a-1", "x-1", "y-1"])


def test_sets_are_joined_in_byte_order_or_refused() -> None:
    first, second = small("a-1 c-1"), small("b-1 a-2", seed=1)
    joined = join_embeddings([first, second])
    assert joined.ids == ("a-1", "a-2", "b-1", "c-1")
    for part in (first, second):
        np.testing.assert_array_equal(joined.rows(part.ids), part.values)
    with pytest.raises(EmbeddingError, match=r"in two sets of embeddings:\n  a-1$"):
        join_embeddings([first, small("a-1 d-1")])
    with pytest.raises(EmbeddingError, match=r"emb/1 differ from emb/0: layer 2 against 1"):
        join_embeddings([first, small("b-1", seed=1, layer=2)])
    with pytest.raises(EmbeddingError, match="no set"):
        join_embeddings([])


def test_mistakes_are_told_before_anything_is_encoded(
    backbone: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "embed", None)
    out = tmp_path / "emb"
    with pytest.raises(ConfigError) as caught:
        extract(backbone, data, out, layer=3, pooling="max", batch_size=0, device="tpu9")
    for part in ("layer 3 is not in 0..2", "pooling 'max'", "batch_size", "device 'tpu9'"):
        assert part in str(caught.value)
    first = sorted((data / "utt2num_samples").read_text().splitlines())
    key = first[0].split()[0]
    (data / "utt2num_samples").write_text("\n".join([f"{key} 480001", *first[1:]]) + "\n")
    with pytest.raises(EmbeddingError, match=f"1 utterances.*longer than the 30 s.*\n  {key}"):
        extract(backbone, data, out)
    assert not out.exists()


def test_data_digest_follows_audio_and_lengths(data: Path) -> None:
    before = data_digest(data)
    (data / "text").write_text((data / "text").read_text().replace("ciao", "addio"))
    assert data_digest(data) == before
    path = data / "utt2num_samples"
    path.write_text(path.read_text().replace("6400", "6401"))
    assert data_digest(data) != before


def test_command_line_writes_every_set(
    tiny_folder: Path, make_datadir: Callable[..., Path], tmp_path: Path
) -> None:
    sets = [
        make_datadir(tmp_path / name, {"pa": 2}, seed=seed)
        for seed, name in enumerate(("train_pa", "dev_pa"), start=7)
    ]
    args = ["--backbone", str(tiny_folder), "--layer", "1", "--device", "cpu", "--data"]
    embed_bin.main([*args, *map(str, sets), "--out", str(tmp_path / "emb")])
    joined = join_embeddings([read_embeddings(tmp_path / "emb" / s.name) for s in sets])
    assert len(joined.ids) == 4
    twice = [str(sets[0]), str(tmp_path / "other" / "train_pa")]
    with pytest.raises(ConfigError, match="sets of the same name: train_pa"):
        embed_bin.main([*args, *twice, "--out", str(tmp_path / "emb2")])
