"""LoRA experts from a checkpoint of ESPnet's own adapters (``use_adapter: true, adapter: lora``).

ESPnet trains LoRA with loralib, whose layers add the update to the weight itself in evaluation
mode and take it away again in training mode. So the ``weight`` in a checkpoint is the base's, or
already holds the update, or is neither (where loading and merging came in the wrong order, espnet
issues 5722 and 6092); nothing in the file tells. Here it is compared with the backbone's.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet_moe.backbones.protocol import Backbone
from espnet_moe.backbones.whisper_loading import rename_openai
from espnet_moe.converting.adapters import Update
from espnet_moe.converting.peft_files import load_checkpoint
from espnet_moe.experts.expert_set import ExpertError

# Defaults of espnet2.layers.create_adapter_fn.create_lora_adapter.
_RANK, _ALPHA = 8, 8
_TOLERANCE = 1e-4  # of the largest weight: merging back and forth in single precision leaves less


def read_espnet(
    checkpoint: str | Path, backbone: Backbone, config: str | Path = ""
) -> dict[str, Update]:
    """Read the LoRA updates of an ESPnet training by the name of the layer here.

    Args:
        checkpoint: ``exp/<training>/valid.acc.best.pth``, with all weights or the adapter alone.
        backbone: The model that was adapted: OWSM, or a Whisper (ESPnet keeps OpenAI's names).
        config: The training's ``config.yaml``; the one beside the checkpoint if empty.

    Raises:
        ExpertError: For files that are no such training, another adapter than LoRA, and weights
            that are neither the backbone's nor the backbone's with the update.
    """
    checkpoint = Path(checkpoint)
    conf = _adapter_conf(Path(config) if config else checkpoint.parent / "config.yaml")
    saved: dict[str, Any] = load_checkpoint(checkpoint)
    saved = saved["model"] if isinstance(saved.get("model"), dict) else saved  # checkpoint.pth
    state = {k: v for k, v in saved.items() if isinstance(v, torch.Tensor)}
    rank, alpha = int(conf.get("rank", _RANK)), float(conf.get("alpha", _ALPHA))
    downs = {k.removesuffix(".lora_A"): v for k, v in state.items() if k.endswith(".lora_A")}
    if not downs:
        raise ExpertError(
            f"{checkpoint} holds no lora_A and lora_B: it is no checkpoint of a LoRA training"
        )
    updates, ours = {}, backbone.network.state_dict()
    for name, down in downs.items():
        up = state.get(f"{name}.lora_B")
        if up is None or (down.size(0), up.size(1)) != (rank, rank):
            raise ExpertError(f"{checkpoint}: {name} has no update of the rank {rank}")
        layer = _here(f"{name}.weight", ours).removesuffix(".weight")
        updates[layer] = Update(down.float(), up.float(), alpha / rank)
    _require_base(checkpoint, state, updates, backbone)
    return updates


def _adapter_conf(path: Path) -> dict[str, Any]:
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        config = yaml.load(path.read_text(encoding="utf-8"), loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExpertError(
            f"{path}, which tells the adapter's rank and alpha, cannot be read: {error}"
        ) from error
    if not isinstance(config, dict) or not config.get("use_adapter"):
        raise ExpertError(f"{path} is of a training without an adapter (use_adapter)")
    if config.get("adapter", "lora") != "lora":
        raise ExpertError(f"{path}: the adapter is a {config['adapter']}; only lora can be read")
    conf = dict(config.get("adapter_conf") or {})
    if conf.get("bias_type", "none") not in ("none", None):
        raise ExpertError(
            f"{path}: biases were trained too (bias_type: {conf['bias_type']}); an expert has none"
        )
    return conf


def _here(name: str, own: Mapping[str, Any]) -> str:
    """What an ESPnet model's parameter is called in the backbone."""
    if name in own:
        return name
    # ESPnetASRModel has openai-whisper's encoder and decoder as encoder.encoders, decoder.decoders.
    return rename_openai(re.sub(r"^(encoder|decoder)\.\1s\.", r"\1.", name))


def _require_base(
    checkpoint: Path,
    state: Mapping[str, torch.Tensor],
    updates: Mapping[str, Update],
    backbone: Backbone,
) -> None:
    """Compare all other weights of a checkpoint with the backbone's."""
    ours, wrong = backbone.network.state_dict(), []
    for key, value in state.items():
        name = _here(key, ours)
        if key.endswith((".lora_A", ".lora_B")) or name not in ours:
            continue  # a Whisper here has no CTC branch, an ESPnet one may
        base, value = ours[name].float().cpu(), value.float()
        if base.shape != value.shape:
            wrong.append(key)
            continue
        near = _TOLERANCE * max(float(base.abs().max()), 1e-3)
        if float((value - base).abs().max()) <= near:
            continue
        update = updates.get(name.removesuffix(".weight"))
        merged = base if update is None else base + update.scale * update.up @ update.down
        if float((value - merged).abs().max()) > near:
            wrong.append(key)
    if wrong:
        raise ExpertError(
            f"{checkpoint}: {len(wrong)} weights are neither this backbone's nor that with the "
            f"update in it, e.g. {wrong[0]}. It was trained on another base, or the base was "
            "trained too (ESPnet's LoRA freezes nothing without freeze_param), or resuming has "
            "taken an update away that was never added: the LoRA alone is not what was trained"
        )
