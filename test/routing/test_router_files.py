"""Routers on disk: the same back, and nothing that is damaged or of another base."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from espnet_moe.errors import UserError
from espnet_moe.files import sha256
from espnet_moe.routing.router_files import load_router, read_router_manifest, save_router
from espnet_moe.routing.routers import NETWORKS, Router

LANGUAGES = ("hi", "it")


@pytest.fixture
def router() -> Router:
    torch.manual_seed(0)
    options = NETWORKS["mlp"](layer=2, pooling="mean_std", hidden=(8, 4))  # type: ignore[call-arg]
    made = Router(options, 6, ("c0", "c1", "c2"), LANGUAGES)
    made.set_temperatures(1.7, 0.6)
    return made.eval()


@pytest.fixture
def folder(router: Router, tmp_path: Path) -> Path:
    save_router(tmp_path / "router", router, "abc", {"metrics": {"accuracy": 97.5}})
    return tmp_path / "router"


def change(folder: Path, **values: Any) -> None:
    path = folder / "router.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "router.safetensors"
    tensors = load_file(path) | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, path)
    change(folder, sha256=sha256(path))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_comes_back(network: str, tmp_path: Path) -> None:
    router = Router(NETWORKS[network](level="frame"), 6, LANGUAGES, LANGUAGES).eval()
    save_router(tmp_path / "r", router, "abc", {})
    loaded = load_router(tmp_path / "r", "abc")
    frames, lengths = torch.randn(2, 9, 6), torch.tensor([9, 4])
    assert torch.equal(loaded(frames, lengths).experts, router(frames, lengths).experts)
    assert not loaded.training


def test_names_options_temperature_and_facts(folder: Path, router: Router) -> None:
    loaded = load_router(folder)
    assert loaded.options == router.options
    assert (loaded.experts, loaded.languages) == (router.experts, router.languages)
    assert float(loaded.temperature) == pytest.approx(1.7)
    assert float(loaded.language_temperature) == pytest.approx(0.6)
    manifest = read_router_manifest(folder)
    assert manifest["facts"] == {"metrics": {"accuracy": 97.5}}
    assert (manifest["layer"], manifest["dim"], manifest["network"]) == (2, 6, "mlp")


def test_saving_again_replaces_and_leaves_nothing_beside(folder: Path, router: Router) -> None:
    router.temperature.fill_(0.5)
    save_router(folder, router, "def", {})
    assert float(load_router(folder, "def").temperature) == 0.5
    assert [p.name for p in folder.parent.iterdir()] == ["router"]


def test_a_router_of_another_base(folder: Path) -> None:
    with pytest.raises(UserError, match=r"another backbone \[abc\]; this one is \[xyz\]"):
        load_router(folder, "xyz")


def test_changed_weights(folder: Path) -> None:
    path = folder / "router.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="SHA-256 differs"):
        load_router(folder)
    change(folder, sha256=sha256(path))
    with pytest.raises(UserError, match="no safetensors file"):
        load_router(folder)


def test_tensors_that_do_not_fit(folder: Path) -> None:
    change_tensors(
        folder,
        **{"stray": torch.zeros(1), "expert_head.bias": None, "language_head.bias": torch.zeros(9)},
    )
    message = r"expert_head.bias is missing; stray has no place; language_head.bias has the shape"
    with pytest.raises(UserError, match=message):
        load_router(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 9}, "format 9; this version reads 1"),
        ({"network": "tree"}, "network 'tree' is unknown"),
        ({"options": {"depth": 3}}, "unknown key.*depth"),
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_wrong_manifests(folder: Path, values: dict, message: str) -> None:
    change(folder, **values)
    with pytest.raises(UserError, match=message):
        load_router(folder)


def test_incomplete_manifests_and_folders(folder: Path) -> None:
    manifest = json.loads((folder / "router.json").read_text())
    del manifest["dim"], manifest["experts"]
    for text, message in (
        (json.dumps(manifest), "incomplete: it has no experts, dim"),
        ("[]", "no manifest of a router"),
        ("{", "is not JSON"),
    ):
        (folder / "router.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_router(folder)
    (folder / "router.json").unlink()
    with pytest.raises(UserError, match="no whole router: router.json missing"):
        load_router(folder)
