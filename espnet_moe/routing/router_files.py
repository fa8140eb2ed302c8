"""Routers on disk.

```
router/
  router.safetensors   the network's tensors
  router.json          network, options, names, temperature, base digest, facts; written last
```
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from espnet_moe import extensions
from espnet_moe.config import build_options
from espnet_moe.errors import UserError
from espnet_moe.files import atomic, sha256, whole_folder
from espnet_moe.routing.networks import known_networks
from espnet_moe.routing.routers import Router

WEIGHTS, MANIFEST = "router.safetensors", "router.json"
FORMAT = 1
_NEEDED = (
    *("network", "options", "experts", "languages", "temperature", "language_temperature"),
    *("base_digest", "layer", "dim", "sha256"),
)


def save_router(
    folder: str | Path, router: Router, base_digest: str, facts: Mapping[str, Any]
) -> None:
    """Write a router, whole or not at all: an earlier one stays until this is complete.

    Args:
        folder: Where to; made if missing.
        router: The router.
        base_digest: Digest of the backbone whose frames it reads.
        facts: What else the manifest tells (data digest, commit, metrics).

    Raises:
        UserError: Where the disk is full or cannot be written.
    """
    folder = Path(folder)
    tensors = {k: v.detach().contiguous().cpu() for k, v in router.state_dict().items()}
    try:
        with whole_folder(folder) as beside:
            _write_parts(beside, tensors, router, base_digest, facts)
    except UserError as error:
        kept = f"; the earlier router in {folder} is kept whole" if folder.exists() else ""
        raise UserError(f"{error}{kept}") from error


def _write_parts(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    router: Router,
    base_digest: str,
    facts: Mapping[str, Any],
) -> None:
    """The two files; the manifest, with the hash of the weights, is the last."""
    with atomic(folder / WEIGHTS) as path:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    manifest = {
        "format": FORMAT,
        "network": router.network,
        "options": asdict(router.options),
        "experts": list(router.experts),
        "languages": list(router.languages),
        "temperature": float(router.temperature),
        "language_temperature": float(router.language_temperature),
        "base_digest": base_digest,
        "layer": router.layer,
        "dim": router.dim,
        "facts": dict(facts),
        "sha256": sha256(folder / WEIGHTS),
    }
    with atomic(folder / MANIFEST) as path:
        text = json.dumps(manifest, indent=2, ensure_ascii=False, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")


def read_router_manifest(folder: str | Path) -> dict[str, Any]:
    """Read and check what a router says of itself.

    Raises:
        UserError: For a folder that holds no router, or one of another format.
    """
    folder = Path(folder)
    if missing := [n for n in (WEIGHTS, MANIFEST) if not (folder / n).is_file()]:
        raise UserError(
            f"{folder} holds no whole router: {', '.join(missing)} missing "
            f"(a router folder has {WEIGHTS} and {MANIFEST})"
        )
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path} holds no manifest of a router")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path} is of the format {manifest.get('format')}; this version reads {FORMAT}"
        )
    if lost := [key for key in _NEEDED if key not in manifest]:
        raise UserError(f"{path} is incomplete: it has no {', '.join(lost)}")
    if manifest["network"] not in known_networks():
        raise UserError(
            f"{path}: network '{manifest['network']}' is unknown to this version; it knows "
            f"{', '.join(known_networks())}; networks from outside are named in "
            f"{extensions.VARIABLE}"
        )
    return manifest


def load_router(folder: str | Path, base_digest: str | None = None) -> Router:
    """Load a router, in evaluation mode, on the CPU.

    Args:
        folder: What :func:`save_router` wrote.
        base_digest: Digest of the backbone whose frames it is to read; not compared if ``None``.

    Raises:
        UserError: For a router of another backbone, or one that is damaged.
    """
    folder = Path(folder)
    manifest = read_router_manifest(folder)
    if base_digest is not None and manifest["base_digest"] != base_digest:
        raise UserError(
            f"the router in {folder} was trained on another backbone "
            f"[{str(manifest['base_digest'])[:12]}]; this one is [{base_digest[:12]}]: give the "
            "backbone that it was trained on, or train it anew"
        )
    tensors = _read_tensors(folder, manifest)
    options = build_options(
        known_networks()[manifest["network"]], manifest["options"], f"{folder / MANIFEST}: options"
    )
    router = Router(options, manifest["dim"], manifest["experts"], manifest["languages"])
    own = router.state_dict()
    problems = [f"{n} is missing" for n in sorted(own.keys() - tensors.keys())]
    problems += [f"{n} has no place" for n in sorted(tensors.keys() - own.keys())]
    problems += [
        f"{n} has the shape {tuple(tensors[n].shape)}, not {tuple(own[n].shape)}"
        for n in sorted(own.keys() & tensors.keys())
        if tensors[n].shape != own[n].shape
    ]
    if problems:
        raise UserError(f"{folder / WEIGHTS} does not fit its manifest: {'; '.join(problems)}")
    router.load_state_dict(tensors)
    for key in ("temperature", "language_temperature"):
        value = manifest[key]
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"{folder / MANIFEST}: {key} is {value}, but must be above 0")
    router.set_temperatures(manifest["temperature"], manifest["language_temperature"])
    return router.eval()


def _read_tensors(folder: Path, manifest: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors, checked against the manifest's hash."""
    path = folder / WEIGHTS
    if sha256(path) != manifest["sha256"]:
        raise UserError(
            f"{path} is not the file that {MANIFEST} describes (SHA-256 differs): copy or train "
            "the router again"
        )
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is no safetensors file ({error}): train the router again"
        ) from error
