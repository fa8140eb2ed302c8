"""Phase finetune: which weights change, and a base that loads wherever a base does."""

import json

import pytest
import torch

from espnet_moe.backbones.loading import load_backbone, read_finetuned
from espnet_moe.bin import decode, train
from espnet_moe.config import ConfigError
from espnet_moe.errors import UserError


@pytest.fixture
def options(train_args):
    """The command line without what is of experts."""

    def make(output, base, *more):
        words = train_args(output)
        for option in ("--experts", "--expert_conf", "--backbone_conf"):
            place = words.index(option)
            del words[place : place + 2]
        return [*words, "--phase", "finetune", "--backbone_conf", f"path={base}", *more]

    return make


def changed(before, after):
    """Names of the weights that are not the same."""
    old, new = (dict(load_backbone(str(b)).network.named_parameters()) for b in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.parametrize("kind", ["whisper", "owsm"])
@pytest.mark.parametrize("part", ["full", "decoder"])
def test_what_is_trained(kind, part, request, options, tmp_path):
    base = request.getfixturevalue("tiny_folder" if kind == "whisper" else "owsm_folder")
    train.main(options(tmp_path / "exp", base, "--finetune_conf", f"part={part}"))
    made = tmp_path / "exp/backbone"
    names = changed(base, made)
    inside = {name for name in names if "decoder." in name}
    assert inside
    if part == "decoder":
        assert names == inside
    else:
        assert any("encoder.conv1" in n or "embed.conv" in n for n in names)
        assert any("fc1" in n or "feed_forward" in n for n in names - inside)
        assert not any("encoder.embed_positions" in n for n in names)  # sinusoids
    note = read_finetuned(str(made))
    network = load_backbone(str(made)).network
    trained = [
        p.numel() for n, p in network.named_parameters() if part == "full" or "decoder." in n
    ]
    frozen = sum(p.numel() for n, p in network.named_parameters() if "encoder.embed_pos" in n)
    assert note["trained_params"] == sum(trained) - (frozen if part == "full" else 0)
    assert note["part"] == part and note["languages"] == ["hi"]


def test_it_is_decoded_as_a_base(options, tiny_folder, tmp_path, make_datadir):
    train.main(options(tmp_path / "exp", tiny_folder))
    sets = {
        code: make_datadir(tmp_path / f"test_{code}", {code: 3}, seed=9) for code in ("hi", "it")
    }
    for place, (code, base) in enumerate(
        {"hi": tmp_path / "exp/backbone", "it": tiny_folder}.items(), start=1
    ):
        decode.main(
            [
                *("--backbone", str(base), "--data", str(sets[code]), "--device", "cpu"),
                *("--out", str(tmp_path / "out"), "--place", f"{place}/2"),
            ]
        )
    jobs = [json.loads((tmp_path / f"out/logdir/output.{n}.json").read_text()) for n in (1, 2)]
    assert [job["num_jobs"] for job in jobs] == [2, 2]
    trained = read_finetuned(str(tmp_path / "exp/backbone"))["trained_params"]
    assert [job["trainable_params"] for job in jobs] == [trained, 0]
    assert (tmp_path / "out/test_it/logdir/output.2/text").read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--finetune_conf", "part=encoder"], "part is full or decoder, not 'encoder'"),
        (["--experts", "hi"], "--experts has no effect in phase finetune"),
        (["--router", "mlp"], "phase finetune has no router"),
        (["--expert_conf", "rank=3"], "--expert_conf has no effect in phase finetune"),
    ],
)
def test_mistakes(options, tiny_folder, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        train.main(options(tmp_path / "exp", tiny_folder, *more))


def test_options_of_another_phase(train_args, tmp_path):
    with pytest.raises(UserError, match="--finetune_conf has no effect in phase expert"):
        train.main(train_args(tmp_path / "exp", "--finetune_conf", "part=full"))


@pytest.mark.parametrize("place", ["3/2", "0/2", "x", "1/"])
def test_a_place_that_cannot_be(place, tiny_folder, tmp_path, make_datadir):
    data = make_datadir(tmp_path / "test_hi", {"hi": 1})
    words = ["--backbone", str(tiny_folder), "--data", str(data), "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match=f"--place {place} is not N/ALL"):
        decode.main([*words, "--place", place])
