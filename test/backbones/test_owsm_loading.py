"""OWSM from a folder and an archive; what is missing or broken is told by name."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
import yaml

from espnet_moe.backbones.loading import load_backbone, load_tokens, max_target_length
from espnet_moe.backbones.owsm import OwsmBackbone
from espnet_moe.backbones.owsm_loading import find_config, is_owsm
from espnet_moe.errors import UserError


@pytest.fixture
def folder(owsm_folder, tmp_path):
    find_config.cache_clear()
    return shutil.copytree(owsm_folder, tmp_path / "owsm")


def change(folder, **keys):
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **keys}), "utf-8")


def test_a_folder(folder):
    backbone = load_backbone(str(folder), "padded")
    assert isinstance(backbone, OwsmBackbone)
    assert backbone.context == "padded"
    assert backbone.max_seconds == 30.0
    assert load_tokens(str(folder)).digest() == backbone.tokens.digest()
    saved = torch.load(folder / "model.pth", weights_only=True)
    for name, value in backbone.s2t.state_dict().items():
        assert torch.equal(value, saved[name]), name


def test_saved_and_loaded_again(folder, tmp_path):
    """The statistics go along; a file that is there is never overwritten."""
    backbone = load_backbone(str(folder))
    again = tmp_path / "again"
    backbone.save_pretrained(again)
    assert load_backbone(str(again)).digest() == backbone.digest()
    own = (folder / "feats_stats.npz").read_bytes()
    assert (again / "feats_stats.npz").read_bytes() == own
    before = (again / "feats_stats.npz").stat().st_mtime_ns
    np.savez(folder / "feats_stats.npz", count=np.array(1), sum=np.ones(80), sum_square=np.ones(80))
    backbone.save_pretrained(again)
    assert (again / "feats_stats.npz").stat().st_mtime_ns == before
    assert (again / "feats_stats.npz").read_bytes() == own


def test_an_archive(folder, tmp_path, monkeypatch):
    """What espnet_model_zoo unpacks: paths of the recipe, found under the archive's root."""
    places = {
        "exp/s2t_train/config.yaml": folder / "config.yaml",
        "exp/s2t_train/valid.acc.ave.pth": folder / "model.pth",
        "data/token_list/bpe/bpe.model": folder / "bpe.model",
        "exp/s2t_stats_raw_bpe/train/feats_stats.npz": folder / "feats_stats.npz",
    }
    meta = {
        "espnet": "202511",
        "files": {"s2t_model_file": "exp/s2t_train/valid.acc.ave.pth"},
        "yaml_files": {"s2t_train_config": "exp/s2t_train/config.yaml"},
    }
    with zipfile.ZipFile(tmp_path / "owsm.zip", "w") as archive:
        archive.writestr("meta.yaml", yaml.safe_dump(meta))
        for name, source in places.items():
            archive.write(source, name)
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / "owsm.zip") as archive:
        archive.extractall(unpacked)
    digest = load_backbone(str(folder)).digest()
    assert load_backbone(str(unpacked)).digest() == digest

    archive = tmp_path / "owsm.zip"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert is_owsm(str(archive))
    assert load_backbone(str(archive)).digest() == digest
    assert len(list((tmp_path / "cache/espnet_moe").iterdir())) == 1

    # Another archive in its place is another model; half an archive is none, and leaves nothing.
    other = dict(torch.load(folder / "model.pth", weights_only=True))
    other["decoder.output_layer.bias"] = other["decoder.output_layer.bias"] + 1
    torch.save(other, tmp_path / "other.pth")
    places["exp/s2t_train/valid.acc.ave.pth"] = tmp_path / "other.pth"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("meta.yaml", yaml.safe_dump(meta))
        for name, source in places.items():
            packed.write(source, name)
    find_config.cache_clear()
    assert load_backbone(str(archive)).digest() != digest
    content = bytearray(archive.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    archive.write_bytes(content)
    find_config.cache_clear()
    with pytest.raises(UserError, match=r"owsm\.zip could not be unpacked"):
        load_backbone(str(archive))
    assert len(list((tmp_path / "cache/espnet_moe").iterdir())) == 2


def test_room_for_tokens_without_the_weights(folder):
    """A config tells as many tokens as the model takes, or two less."""
    room = load_backbone(str(folder)).max_target_length
    (folder / "model.pth").unlink()
    assert room - 2 <= max_target_length(str(folder)) <= room


def test_what_is_what(folder, tiny_folder):
    assert is_owsm(str(folder))
    assert is_owsm("espnet/owsm_v3.1_ebf")
    assert not is_owsm(str(tiny_folder))
    assert not is_owsm("openai/whisper-small")
    assert not is_owsm("missing.pt")


def test_files_that_are_missing(folder):
    path = str(folder)
    (folder / "bpe.model").rename(folder / "other.model")
    with pytest.raises(UserError, match=r"not there: .*bpe\.model"):
        load_backbone(path)
    (folder / "other.model").rename(folder / "bpe.model")
    shutil.copy(folder / "model.pth", folder / "b.pth")
    (folder / "model.pth").rename(folder / "a.pth")
    with pytest.raises(UserError, match="2 model files"):
        load_backbone(path)
    (folder / "a.pth").unlink()
    (folder / "b.pth").unlink()
    with pytest.raises(UserError, match="no model files"):
        load_backbone(path)
    with pytest.raises(UserError, match="does not exist.*espnet/owsm"):
        load_backbone("./owsm_nowhere")


def test_weights_that_do_not_fit(folder):
    state = torch.load(folder / "model.pth", weights_only=True)
    lost = {k: v for k, v in state.items() if "merge_proj" not in k}
    torch.save(lost | {"encoder.strange.weight": torch.zeros(2)}, folder / "model.pth")
    with pytest.raises(UserError, match=r"lacks 4 weights, e\.g\. .*merge_proj.*has 1 that"):
        load_backbone(str(folder))
    (folder / "model.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a checkpoint"):
        load_backbone(str(folder))


def test_other_architectures_are_named(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    change(folder, encoder="conformer", decoder="rnn", postencoder="length_adaptor")
    with pytest.raises(UserError, match=r"encoder is 'conformer'.*decoder is 'rnn'.*postencoder"):
        load_backbone(str(folder))
    own = config["encoder_conf"] | {
        "attention_layer_type": "rel_selfattn",
        "pos_enc_layer_type": "rel_pos",
    }
    change(folder, encoder="e_branchformer", decoder="transformer", postencoder=None)
    change(folder, encoder_conf=own)
    with pytest.raises(UserError, match=r"attention is RelPosition.*not selfattn"):
        load_backbone(str(folder))
    change(folder, encoder_conf=config["encoder_conf"] | {"colour": "red"})
    with pytest.raises(UserError, match="colour"):
        load_backbone(str(folder))


def test_no_code_runs_from_a_checkpoint(folder):
    """Weights are loaded as weights: a pickle that would run something is refused."""
    torch.save({"encoder": print}, folder / "model.pth")
    with pytest.raises(UserError, match="is not a checkpoint"):
        load_backbone(str(folder))
