"""LoRA adapters that huggingface/peft has saved for a transformers Whisper.

The other way needs no conversion: an expert's folder is one that PEFT reads.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from espnet_moe.converting.adapters import Update
from espnet_moe.experts.expert_set import ExpertError

CONFIG, SAFE, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."

# Keys of PEFT's LoraConfig that say how an adapter is used or came about, not what it computes.
_READ = {
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("bias", "init_lora_weights", "target_modules", "exclude_modules"),
}
_HARMLESS = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "layers_to_transform", "layers_pattern", "megatron_core"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying", "eva_config"),
}
# Those that train beside a base which they have not changed (others move weights into the adapter).
_INITIALISED = (True, False, None, "gaussian", "eva", "orthogonal")


def read_peft(folder: str | Path) -> dict[str, Update]:
    """Read an adapter's updates by the name of the layer.

    Args:
        folder: What ``PeftModel.save_pretrained`` wrote: ``adapter_config.json`` and
            ``adapter_model.safetensors`` (or ``.bin``).

    Raises:
        ExpertError: For a folder without one, and for kinds of adapters that are no plain LoRA
            (DoRA, IA³, saved modules, …), by name.
    """
    folder = Path(folder)
    config = _read_config(folder)
    _require_plain(folder, config)
    tensors = _read_tensors(folder)
    updates, halves, strangers = {}, dict[str, dict[str, torch.Tensor]](), []
    for key, tensor in tensors.items():
        found = re.fullmatch(rf"(?:{re.escape(_PREFIX)})?(.+)\.lora_([AB])\.weight", key)
        if found is None:
            strangers.append(key)
        else:
            halves.setdefault(found[1], {})[found[2]] = tensor.float()
    strangers += [f"{name}.lora_{'B' if 'A' in h else 'A'} (missing)" for name, h in halves.items()
                  if len(h) < 2]  # fmt: skip
    if strangers:
        raise ExpertError(
            f"{folder} holds more or less than LoRA's A and B: {', '.join(strangers[:3])}; only "
            "plain LoRA on linear layers can be converted"
        )
    for name, half in halves.items():
        try:
            rank = _by_pattern(config.get("rank_pattern"), name, config["r"])
            alpha = _by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        except (KeyError, TypeError, AttributeError, ArithmeticError, re.error) as error:
            raise ExpertError(
                f"{folder / CONFIG}: r, lora_alpha, rank_pattern or alpha_pattern cannot be read "
                f"for {name} ({error!r})"
            ) from error
        if (half["A"].size(0), half["B"].size(1)) != (rank, rank):
            raise ExpertError(
                f"{folder}: {name} has the rank {half['A'].size(0)}, but {CONFIG} says {rank}"
            )
        updates[name] = Update(half["A"], half["B"], scale)
    return updates


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ExpertError(f"{folder} holds no PEFT adapter: {CONFIG} is missing")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no mapping")
    except ValueError as error:
        raise ExpertError(f"{path} cannot be read: {error}") from error
    return config


def _require_plain(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse, by name, what is more than ``scale · B A`` beside an unchanged linear layer."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ExpertError(
            f"{folder} holds a PEFT adapter of the kind {kind}; only LORA can be read"
        )
    problems = []
    if config.get("use_dora"):
        problems.append("it is a DoRA (use_dora)")
    if config.get("bias", "none") != "none":
        problems.append(f"it has trained biases (bias: {config['bias']})")
    if config.get("init_lora_weights") not in _INITIALISED:
        problems.append(
            f"it began as {config['init_lora_weights']}, which changes the base: save it with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
    known = _READ | _HARMLESS
    problems += [f"it uses {key}" for key, value in config.items() if value and key not in known]
    if problems:
        raise ExpertError(
            f"{folder} is no plain LoRA: {'; '.join(problems)}; merge it with PEFT "
            "(merge_and_unload) and use the result as a backbone instead"
        )


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The value of the first pattern that a layer's name ends with (peft ``get_pattern_key``)."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / SAFE).is_file():
        try:
            return dict(load_file(folder / SAFE))
        except (SafetensorError, OSError) as error:
            raise ExpertError(f"{folder / SAFE} is no safetensors file ({error})") from error
    if not (folder / PICKLED).is_file():
        raise ExpertError(f"{folder} holds no weights: {SAFE} (or {PICKLED}) is missing")
    return load_checkpoint(folder / PICKLED)


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a torch checkpoint; code in it is never run.

    Raises:
        ExpertError: For what holds anything but tensors by name.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise ExpertError(
            f"{path} is no checkpoint of plain tensors, and is not run: {error}"
        ) from error
    if not isinstance(state, dict):
        raise ExpertError(f"{path} holds no tensors by name, but a {type(state).__name__}")
    return state
