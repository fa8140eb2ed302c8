"""Packages: loaded by us and by espnet_model_zoo, the same bytes, and what strangers plant."""

import json
import os
import shutil
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from espnet_moe import Speech2Text
from espnet_moe.archives import unpacked, write_archive
from espnet_moe.decoding.routing import RoutingOptions
from espnet_moe.errors import UserError
from espnet_moe.files import sha256
from espnet_moe.packing import packages
from espnet_moe.packing.contents import Parts, seal
from espnet_moe.packing.packages import pack_expert, pack_hub, pack_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make_parts(mixture, folder):
    folder.mkdir(exist_ok=True)
    (folder / "TERMS").write_text("Do what is right.\n")
    (folder / "RESULTS.md").write_text("# Results\n")
    (folder / "tree.yaml").write_text("near: [hi, pa]\nfar: [it]\n")
    routing = RoutingOptions(tree=str(folder / "tree.yaml"), allowed=("hi", "pa"))
    return Parts(
        backbone=mixture.backbone,
        licence=folder / "TERMS",
        experts=mixture.experts,
        router=mixture.router,
        strategy="hierarchical",
        options=replace(mixture.options, routing=routing),
        results=folder / "RESULTS.md",
    )


@pytest.fixture(scope="session")
def packed(mixture, tmp_path_factory):
    """A package of the small mixture, proven in a fresh process."""
    folder = tmp_path_factory.mktemp("packed")
    parts = make_parts(mixture, folder / "parts")
    return pack_model(parts, folder / "model.zip", device="cpu"), parts


@pytest.fixture
def unproven(monkeypatch):
    """Leave the fresh process out: it takes longer than all the rest."""
    monkeypatch.setattr(packages, "require_same", lambda *_: None)


def same(model, parts, recordings):
    want = parts.load("cpu")
    for wishes in ({}, {"strategy": "soft"}, {"language": "it"}):
        got = [(r.tokens, r.score, r.gates) for r in model(recordings, **wishes)]
        assert got == [(r.tokens, r.score, r.gates) for r in want(recordings, **wishes)]


def test_an_archive_and_its_folder_anywhere(packed, recordings, tmp_path, monkeypatch):
    archive, parts = packed
    same(Speech2Text.from_pretrained(archive, "cpu"), parts, recordings)
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "a" / "b")
        assert content.namelist()[0] == "meta.yaml"
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.chdir(tmp_path / "a")
    for source in ("b", tmp_path / "a" / "b"):
        same(Speech2Text.from_pretrained(source, "cpu"), parts, recordings)
    assert (tmp_path / "a/b/LICENSE").read_text() == "Do what is right.\n"
    assert (tmp_path / "a/b/RESULTS.md").is_file()
    assert {r.language for r in Speech2Text.from_pretrained("b", "cpu")(recordings)} <= {"hi", "pa"}


def test_espnet_model_zoo_unpacks_it(packed, recordings, tmp_path):
    from espnet_model_zoo.downloader import ModelDownloader

    archive, parts = packed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ModelDownloader(tmp_path / "zoo").download_and_unpack(str(archive))
    config = tmp_path / "zoo" / os.path.basename(os.path.dirname(found["moe_config"])) / "moe.yaml"
    assert found == {"moe_config": str(config)}
    same(Speech2Text.from_pretrained(config.parent, "cpu"), parts, recordings)


def test_names_are_left_to_espnet_model_zoo(packed, recordings, monkeypatch):
    """What it fetches: an archive by a tag, a folder by a hub name."""
    from espnet_model_zoo import downloader

    archive, parts = packed
    asked = []
    fetched = {"tag": archive, "owner/model": unpacked(archive)}

    class Downloader:
        def download(self, name):
            asked.append(name)
            return str(fetched[name])

    monkeypatch.setattr(downloader, "ModelDownloader", Downloader)
    for name in fetched:
        same(Speech2Text.from_pretrained(name, "cpu"), parts, recordings)
    assert asked == list(fetched)
    with pytest.raises(UserError, match="'owner/none' is no file or folder here, and could not be"):
        Speech2Text.from_pretrained("owner/none", "cpu")
    with pytest.raises(UserError, match=r"nowhere\.zip' does not exist"):
        Speech2Text.from_pretrained("nowhere.zip")


@pytest.mark.parametrize("base", ["mixture", "owsm_mixture"])
def test_the_same_bytes(request, base, tmp_path, unproven):
    parts = make_parts(request.getfixturevalue(base), tmp_path / "parts")
    one = pack_model(parts, tmp_path / "one.zip", device="cpu").read_bytes()
    two = pack_model(parts, tmp_path / "elsewhere" / "two.zip", device="cpu").read_bytes()
    assert one == two
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "one.zip", "parts"]


@pytest.mark.parametrize("base", ["mixture", "owsm_mixture"])
def test_half_precision_where_nothing_is_lost(request, base, tmp_path, unproven):
    from espnet_moe.backbones.loading import load_backbone

    parts = make_parts(request.getfixturevalue(base), tmp_path / "parts")
    backbone, digests, sizes = load_backbone(parts.backbone), [], []
    for i in range(2):
        backbone.save_pretrained(tmp_path / f"base{i}")
        whole = replace(parts, backbone=str(tmp_path / f"base{i}"), experts={}, router=None)
        whole = replace(whole, strategy="")
        with zipfile.ZipFile(pack_model(whole, tmp_path / f"{i}.zip", device="cpu")) as archive:
            names = [n for n in archive.namelist() if n.endswith((".safetensors", ".pth"))]
            sizes.append(sum(archive.getinfo(name).file_size for name in names))
        again = Speech2Text.from_pretrained(tmp_path / f"{i}.zip", "cpu")
        assert again.digest == backbone.digest()
        assert {p.dtype for p in again.base.parameters()} == {torch.float32}
        digests.append(again.digest)
        backbone.network.half().float()  # now nothing would be lost
    assert sizes[1] < 0.7 * sizes[0] and digests[0] != digests[1]


def test_owsm(owsm_mixture, recordings, tmp_path):
    parts = make_parts(owsm_mixture, tmp_path / "parts")
    archive = pack_model(parts, tmp_path / "owsm.zip", device="cpu")
    same(Speech2Text.from_pretrained(archive, "cpu"), parts, recordings)


def test_an_expert_alone(mixture, recordings, tmp_path):
    parts = replace(make_parts(mixture, tmp_path / "parts"), experts={"en": mixture.extra})
    archive = pack_expert(parts, "en", tmp_path / "en.zip", device="cpu")
    with zipfile.ZipFile(archive) as content:
        names = content.namelist()
    assert not any(name.startswith(("base", "router")) for name in names) and "LICENSE" in names
    model = Speech2Text(mixture.backbone, {"en": archive}, options=mixture.options, device="cpu")
    want = Speech2Text(
        mixture.backbone, {"en": mixture.extra}, options=mixture.options, device="cpu"
    )
    got = [r.tokens for r in model(recordings, language="en")]
    assert got == [r.tokens for r in want(recordings, language="en")]
    with pytest.raises(UserError, match="no expert 'hi'; experts: en"):
        pack_expert(parts, "hi", tmp_path / "hi.zip")


def test_an_expert_of_another_base(mixture, owsm_mixture, tmp_path, unproven):
    parts = replace(make_parts(mixture, tmp_path / "parts"), experts={"en": mixture.extra})
    archive = pack_expert(parts, "en", tmp_path / "en.zip", device="cpu")
    with pytest.raises(UserError, match="experts of another base"):
        Speech2Text(owsm_mixture.backbone, {"en": archive}, device="cpu")


def test_a_folder_for_the_hub(mixture, recordings, tmp_path, unproven):
    parts = make_parts(mixture, tmp_path / "parts")
    out = pack_hub(parts, tmp_path / "hub", "me/mixture", "apache-2.0", device="cpu")
    same(Speech2Text.from_pretrained(out, "cpu"), parts, recordings)
    head, text = (out / "README.md").read_text("utf-8").removeprefix("---\n").split("---\n", 1)
    head = yaml.safe_load(head)
    assert head["language"] == ["hi", "it", "pa"] and head["license"] == "apache-2.0"
    assert head["pipeline_tag"] == "automatic-speech-recognition"
    assert 'from_pretrained("me/mixture")' in text and "| it | it | 4 |" in text
    # The hub's own files beside it are no damage.
    (out / ".gitattributes").write_text("*.zip")
    Speech2Text.from_pretrained(out, "cpu")
    with pytest.raises(UserError, match="hub is there already"):
        pack_hub(parts, out, "me/mixture", "other")


def test_nothing_is_left_of_what_fails(mixture, tmp_path, monkeypatch):
    parts = make_parts(mixture, tmp_path / "parts")
    (tmp_path / "model.zip").write_text("the earlier one")
    # The options are not those that the parts were decoded with.
    write = packages.write_model
    other = replace(parts, options=replace(parts.options, max_tokens=3))
    monkeypatch.setattr(packages, "write_model", lambda f, p, m: write(f, other, m))
    with pytest.raises(UserError, match="decodes the sample otherwise than its parts"):
        pack_model(parts, tmp_path / "model.zip", device="cpu")
    assert (tmp_path / "model.zip").read_text() == "the earlier one"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["model.zip", "parts"]


def test_what_cannot_be_packed(mixture, tmp_path):
    parts = make_parts(mixture, tmp_path / "parts")
    with pytest.raises(UserError, match=r"model.tar has no .zip at its end"):
        pack_model(parts, tmp_path / "model.tar")
    with pytest.raises(UserError, match="nowhere does not exist"):
        pack_model(replace(parts, licence=tmp_path / "nowhere"), tmp_path / "model.zip")


# -- what strangers plant -------------------------------------------------------------------------


class Planted:
    """A pickle that would make a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def opened(packed, tmp_path):
    """The package's folder, to plant something in."""
    with zipfile.ZipFile(packed[0]) as content:
        content.extractall(tmp_path / "opened")
    return tmp_path / "opened"


def refused(folder, message, sealed=True):
    """Refused as a folder and as an archive, with digests that fit where they were made anew."""
    if sealed:
        (folder / "manifest.json").unlink()
        seal(folder)
    with pytest.raises(UserError, match=message):
        Speech2Text.from_pretrained(folder, "cpu")
    write_archive(folder, folder.parent / "evil.zip")
    with pytest.raises(UserError, match=message):
        Speech2Text.from_pretrained(folder.parent / "evil.zip", "cpu")
    assert not (folder.parent / "run").exists(), "code must not have run"


def test_changed_files(opened):
    for name in ("moe.yaml", "base/model.safetensors", "experts/hi/expert.json", "decode.yaml"):
        path = opened / name
        whole = path.read_bytes()
        path.write_bytes(whole + b" ")
        refused(opened, f"is not whole: {name} is missing or changed", sealed=False)
        path.unlink()
        refused(opened, f"is not whole: {name} is missing|moe.yaml is missing", sealed=False)
        path.write_bytes(whole)


def test_other_base_with_digests_to_match(opened, make_backbone):
    other = make_backbone()
    other.hf.model.encoder.conv1.bias.data[0] += 1
    other.save_pretrained(opened / "base")
    refused(opened, "another backbone")
    # Its digest said in moe.yaml: the router and the experts still know their own.
    said = yaml.safe_load((opened / "moe.yaml").read_text())
    (opened / "moe.yaml").write_text(yaml.safe_dump({**said, "base_digest": other.digest()}))
    refused(opened, "another backbone")
    (opened / "moe.yaml").write_text(
        yaml.safe_dump({**said, "router": "", "strategy": "", "base_digest": other.digest()})
    )
    refused(opened, "experts of another base")


def test_planted_pickles(opened, packed, owsm_folder):
    evil = Planted(opened.parent / "run")
    weights = opened / "experts/hi/adapter_model.safetensors"
    whole = weights.read_bytes()
    torch.save({"x": evil}, weights)
    manifest = json.loads((opened / "experts/hi/expert.json").read_text())
    manifest["sha256"]["adapter_model.safetensors"] = sha256(weights)
    (opened / "experts/hi/expert.json").write_text(json.dumps(manifest))
    (opened / "manifest.json").unlink()
    seal(opened)
    # An expert is read when it is used.
    model = Speech2Text.from_pretrained(opened, "cpu")
    with pytest.raises(UserError, match="truncated or no safetensors file"):
        model(np.zeros(8000, np.float32), language="hi")
    weights.write_bytes(whole)
    (opened / "base/model.safetensors").unlink()
    torch.save({"x": evil}, opened / "base/pytorch_model.bin")
    refused(opened, "could not be loaded")
    shutil.rmtree(opened / "base")
    shutil.copytree(owsm_folder, opened / "base")
    torch.save({"x": evil}, opened / "base/model.pth")
    refused(opened, "is not a checkpoint")
    shutil.copy(owsm_folder / "model.pth", opened / "base/model.pth")
    np.savez(opened / "base/feats_stats.npz", count=np.array([evil], dtype=object))
    refused(opened, "Object arrays cannot be loaded")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "../opened/base"}, "'../opened/base', which is not in its folder"),
        ({"base": "/etc"}, "'/etc', which is not in its folder"),
        ({"experts": {"hi": "../x"}}, "which is not in its folder"),
        ({"router": "/"}, "which is not in its folder"),
        ({"experts": ["hi"]}, "experts is a folder by name"),
        ({"format": 2}, "of the format 2; this version reads 1"),
        ({"colour": "red"}, r"unknown key\(s\) colour"),
        ({"base_digest": "0" * 64}, r"its digest is \[.*\], not \[000000000000\]"),
        ({"context": "padded"}, "trained with --context variable"),
        ({"strategy": "best"}, "strategy 'best' is unknown"),
    ],
)
def test_descriptions_that_lie(opened, changes, message):
    said = yaml.safe_load((opened / "moe.yaml").read_text())
    (opened / "moe.yaml").write_text(yaml.safe_dump({**said, **changes}))
    refused(opened, message)


def test_yaml_with_code(opened):
    text = f"!!python/object/apply:os.mkdir ['{opened.parent / 'run'}']\n"
    for name in ("moe.yaml", "decode.yaml", "families.yaml"):
        whole = (opened / name).read_text()
        (opened / name).write_text(text)
        refused(opened, "YAML|yaml")
        (opened / name).write_text(whole)


def test_no_model_at_all(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no packed model \(moe.yaml is missing\)"):
        Speech2Text.from_pretrained(tmp_path / "empty")
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(UserError, match="could not be unpacked"):
        Speech2Text.from_pretrained(tmp_path / "text.zip")
