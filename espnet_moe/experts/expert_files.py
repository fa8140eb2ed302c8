"""Experts on disk: PEFT's two files, and a third that says what the expert belongs to.

```
expert_hi/
  adapter_config.json         PEFT's configuration (huggingface/peft ``LoraConfig``)
  adapter_model.safetensors   base_model.model.<module>.lora_{A,B}.weight
  expert.json                 kind, base digest, languages, data, normaliser, commit, metrics
```
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from espnet_moe import extensions
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_set import ExpertError, ExpertSet
from espnet_moe.experts.kinds import ExpertOptions, kind_of, known_kinds
from espnet_moe.files import atomic, sha256, whole_folder

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "expert.json"
FORMAT = 1
_PREFIX = "base_model.model."


def save_expert(
    folder: str | Path, experts: ExpertSet, name: str, base_digest: str, facts: Mapping[str, Any]
) -> None:
    """Write one expert of a set, whole or not at all: an earlier one stays until this is complete.

    Args:
        folder: Where to; made if missing.
        experts: The set.
        name: Which of its experts.
        base_digest: Digest of the backbone that it was trained on.
        facts: What else the manifest tells (languages, data digest, normaliser, commit, metrics).
    """
    folder = Path(folder)
    options = experts.options[name]
    config = {
        **options.peft_config(),
        "task_type": None,
        "base_model_name_or_path": facts.get("backbone"),
        "target_modules": sorted(experts.layers),
        "inference_mode": True,
    }
    tensors = {
        f"{_PREFIX}{key}.weight": value.contiguous().cpu()
        for key, value in experts.state(name).items()
    }
    facts = {
        "kind": kind_of(options),
        "name": name,
        "base_digest": base_digest,
        "options": asdict(options),
        **facts,
    }
    try:
        with whole_folder(folder) as beside:
            _write_parts(beside, tensors, config, facts)
    except UserError as error:
        kept = f"; the earlier expert in {folder} is kept whole" if folder.exists() else ""
        raise ExpertError(f"{error}{kept}") from error


def _write_parts(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """The three files; the manifest, with the hashes of the others, is the last."""
    with atomic(folder / WEIGHTS) as path:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    _write_json(folder / CONFIG, config)
    hashes = {name: sha256(folder / name) for name in (WEIGHTS, CONFIG)}
    _write_json(folder / MANIFEST, {"format": FORMAT, "sha256": hashes, **facts})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read and check what an expert says of itself.

    Raises:
        ExpertError: For a folder that holds no expert, or one of another format.
    """
    folder = Path(folder)
    missing = [n for n in (CONFIG, WEIGHTS, MANIFEST) if not (folder / n).is_file()]
    if missing:
        raise ExpertError(
            f"{folder} holds no whole expert: {', '.join(missing)} missing "
            f"(an expert folder has {CONFIG}, {WEIGHTS} and {MANIFEST})"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExpertError(f"{folder / MANIFEST} is not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise ExpertError(f"{folder / MANIFEST} holds no manifest of an expert")
    if manifest.get("format") != FORMAT or manifest.get("kind") not in known_kinds():
        raise ExpertError(
            f"{folder}: kind {manifest.get('kind')}, format {manifest.get('format')}; "
            f"this version reads kind {', '.join(known_kinds())}, format {FORMAT}; kinds from "
            f"outside are named in {extensions.VARIABLE}"
        )
    if lost := [key for key in ("base_digest", "options", "sha256") if key not in manifest]:
        raise ExpertError(f"{folder / MANIFEST} is incomplete: it has no {', '.join(lost)}")
    return dict(manifest)


def read_weights(folder: str | Path, manifest: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read an expert's tensors, checked against the manifest's hash.

    Raises:
        ExpertError: For a file that is truncated or was changed.
    """
    path = Path(folder) / WEIGHTS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ExpertError(
            f"{path} is truncated or no safetensors file ({error}): copy or train the expert again"
        ) from error
    for part in (path, path.with_name(CONFIG)):
        if sha256(part) != manifest["sha256"].get(part.name):
            raise ExpertError(f"{part} is not the file that {MANIFEST} describes (SHA-256 differs)")
    return {k.removeprefix(_PREFIX).removesuffix(".weight"): v for k, v in tensors.items()}


def load_experts(
    host: Any, folders: Mapping[str, str | Path], digest: str | None = None
) -> ExpertSet:
    """Put saved experts into a backbone.

    Args:
        host: The backbone; it needs ``digest()`` beside what :class:`ExpertSet` asks for.
        folders: Name in the set → folder.
        digest: What ``host.digest()`` says, where that is known: it reads every weight.

    Raises:
        ExpertError: For an expert of another base, or one that is damaged; nothing is changed then.
    """
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    require_same_base(manifests, folders, digest or host.digest())
    weights = {name: read_weights(folders[name], manifests[name]) for name in folders}
    options = {name: _options(manifest) for name, manifest in manifests.items()}
    experts = ExpertSet(host, options, list(folders))
    try:
        for name, state in weights.items():
            experts.load_state(name, state)
    except ExpertError:
        experts.remove(host)
        raise
    return experts


def require_same_base(
    manifests: Mapping[str, Mapping[str, Any]], folders: Mapping[str, str | Path], digest: str
) -> None:
    """Refuse experts that were trained on another base than that of a digest.

    Raises:
        ExpertError: Naming all of them.
    """
    strangers = [n for n, m in manifests.items() if m["base_digest"] != digest]
    if strangers:
        details = "; ".join(
            f"'{n}' ({folders[n]}) was trained on {manifests[n].get('backbone')} "
            f"[{str(manifests[n]['base_digest'])[:12]}]"
            for n in strangers
        )
        raise ExpertError(
            f"experts of another base: {details}; this backbone is [{digest[:12]}]: "
            "give the backbone that they were trained on, or train them anew"
        )


def _options(manifest: Mapping[str, Any]) -> ExpertOptions:
    kind = known_kinds()[manifest["kind"]]
    known: Sequence[str] = list(kind.__dataclass_fields__)
    if unknown := sorted(set(manifest["options"]) - set(known)):
        raise ExpertError(f"expert options {', '.join(unknown)} are unknown to this version")
    return kind(**manifest["options"])
