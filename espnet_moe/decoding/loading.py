"""From names on a command line to a decoder that is ready."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml

from espnet_moe.backbones.whisper import WhisperBackbone
from espnet_moe.config import ConfigError, build_options
from espnet_moe.decoding.decoder import SYSTEMS, DecodeOptions, Decoder
from espnet_moe.experts.expert_files import load_experts, read_manifest


def parse_experts(system: str, pairs: Sequence[str]) -> dict[str, str]:
    """``["hi=exp/expert_hi/expert", …]`` → folder by name.

    Raises:
        ConfigError: For an unknown system, a malformed or doubled pair, or experts that the system
            lacks or has no use for.
    """
    if system not in SYSTEMS:
        raise ConfigError(f"--system {system} is unknown: choose one of {', '.join(SYSTEMS)}")
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise ConfigError(
                f"--experts '{pair}' is not NAME=FOLDER, e.g. hi=exp/expert_hi/expert"
            )
        if name in found:
            raise ConfigError(f"--experts names '{name}' twice")
        found[name] = folder
    if system == "baseline" and found:
        raise ConfigError("--system baseline is the backbone alone: leave --experts out")
    if system != "baseline" and not found:
        raise ConfigError(f"--system {system} needs --experts NAME=FOLDER …")
    return found


def read_options(path: str | None) -> DecodeOptions:
    """Decoding options from a YAML file; the defaults without one."""
    if path is None:
        return DecodeOptions()
    if not Path(path).is_file():
        raise ConfigError(f"--config {path} does not exist")
    try:
        conf = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(conf, dict):
        raise ConfigError(f"--config {path} is no mapping of options to values")
    return build_options(DecodeOptions, conf, path)


def load_decoder(
    backbone: str, context: str, experts: Mapping[str, str], config: str | None, device: str
) -> Decoder:
    """Load backbone and experts onto a device (``auto``: a GPU where there is one)."""
    options = read_options(config)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = _device(device)
    model = WhisperBackbone.from_pretrained(backbone, context)
    _require_same_setting(model, experts)
    found = load_experts(model, experts) if experts else None
    return Decoder(model.to(place), found, options)


def _require_same_setting(model: WhisperBackbone, experts: Mapping[str, str]) -> None:
    """Refuse experts that were trained with another tokenizer or context than this decode has."""
    problems, digest = [], model.tokens.digest()
    for name, folder in experts.items():
        manifest = read_manifest(folder)
        if manifest.get("context", model.context) != model.context:
            problems.append(f"'{name}' was trained with --context {manifest['context']}")
        if manifest.get("tokenizer_digest", digest) != digest:
            problems.append(f"'{name}' was trained with another tokenizer")
    if problems:
        raise ConfigError(f"{'; '.join(problems)}; this decode has --context {model.context}")


def _device(name: str) -> torch.device:
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name} is none: use auto, cpu, cuda or cuda:N") from error
    if place.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name} is not supported: use auto, cpu, cuda or cuda:N")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"--device {name}: torch sees {count or 'no'} GPU here; use auto or cpu")
    return place
