"""From names on a command line to a decoder that is ready."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from espnet_moe.backbones.loading import load_backbone
from espnet_moe.backbones.protocol import Backbone
from espnet_moe.config import ConfigError, build_options, read_config
from espnet_moe.decoding.decoder import SYSTEMS, DecodeOptions, Decoder
from espnet_moe.decoding.routing import RoutingOptions
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_files import load_experts, read_manifest
from espnet_moe.routing.families import is_of_experts, load_families
from espnet_moe.routing.router_files import load_router, read_router_manifest


def parse_experts(
    system: str,
    pairs: Sequence[str],
    router: str | None = None,
    utt2experts: str | None = None,
) -> dict[str, str]:
    """``["hi=exp/expert_hi/expert", …]`` → folder by name.

    Args:
        system: One of :data:`SYSTEMS`.
        pairs: ``NAME=FOLDER`` each.
        router: What ``--router`` says.
        utt2experts: What ``--utt2experts`` says.

    Raises:
        ConfigError: For an unknown system, malformed or doubled pairs, or options that the system
            lacks or has no use for; all at once.
    """
    if system not in SYSTEMS:
        raise ConfigError(f"--system {system} is unknown: choose one of {', '.join(SYSTEMS)}")
    problems, found = [], dict[str, str]()
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            problems.append(f"--experts '{pair}' is not NAME=FOLDER, e.g. hi=exp/expert_hi/expert")
        elif name in found:
            problems.append(f"--experts names '{name}' twice")
        found[name] = folder
    if system == "baseline" and pairs:
        problems.append("--system baseline is the backbone alone: leave --experts out")
    if system != "baseline" and not pairs:
        problems.append(f"--system {system} needs --experts NAME=FOLDER …")
    if system in ("baseline", "oracle") and router is not None:
        problems.append(f"--system {system} has no router: leave --router out")
    if system not in ("baseline", "oracle", "fixed") and router is None:
        problems.append(f"--system {system} needs --router FOLDER")
    if system != "oracle" and utt2experts is not None:
        problems.append("--utt2experts is for --system oracle: leave it out")
    if problems:
        raise ConfigError("; ".join(problems))
    return found


def read_options(path: str | None) -> DecodeOptions:
    """Decoding options from a YAML file; the defaults without one."""
    if path is None:
        return DecodeOptions()
    conf = read_config(path)
    problems, nested = [], conf.pop("routing", None) or {}
    routing = RoutingOptions()
    try:
        if not isinstance(nested, dict):
            raise ConfigError(f"{path}: routing is a mapping, not {nested!r}")
        routing = build_options(RoutingOptions, nested, f"{path}: routing")
    except UserError as error:
        problems.append(str(error))
    try:
        options = build_options(DecodeOptions, conf, path)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return replace(options, routing=routing)


def load_decoder(
    backbone: str,
    context: str,
    experts: Mapping[str, str],
    config: str | None,
    device: str,
    system: str = "",
    router: str | None = None,
) -> Decoder:
    """Load backbone, experts and router onto a device (``auto``: a GPU where there is one).

    Args:
        backbone: Folder, ``.pt`` file or hub name.
        context: Encoder input, ``variable`` or ``padded``.
        experts: Folder by name; a router's system takes them in the router's order.
        config: YAML of decoding options.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:0`` …
        system: One of :data:`SYSTEMS`.
        router: Folder of the router, for the systems that have one.

    Raises:
        UserError: For anything that does not fit; what the files alone tell is told at once.
    """
    options = read_options(config)
    place = find_device(device)
    if router is not None:
        experts = _in_routers_order(router, experts, system, options.routing)
    model = load_backbone(backbone, context)
    require_same_setting(model, experts)
    chooser = None if router is None else load_router(router, model.digest())
    found = load_experts(model, experts) if experts else None
    return Decoder(model.to(place), found, options, system, chooser)


def _in_routers_order(
    folder: str, experts: Mapping[str, str], system: str, options: RoutingOptions
) -> dict[str, str]:
    """The experts in the order of the router's logits; everything wrong with its settings."""
    manifest = read_router_manifest(folder)
    names, languages = list(manifest["experts"]), list(manifest["languages"])
    problems = []
    if missing := [n for n in names if n not in experts]:
        problems.append(f"--experts lacks {', '.join(missing)}, which the router chooses")
    if extra := [n for n in experts if n not in names]:
        problems.append(f"the router does not know --experts {', '.join(extra)}")
    if unknown := sorted(set(options.allowed) - set(languages)):
        problems.append(f"routing: allowed language(s) {', '.join(unknown)} are unknown to it")
    if system == "topk" and options.k > len(names):
        problems.append(f"routing: k is {options.k}, but it has {len(names)} experts")
    if system == "fixed" and options.expert not in names:
        problems.append(f"routing: expert '{options.expert}' is none of its experts")
    level = manifest["options"].get("level")
    if system == "frame" and level != "frame":
        problems.append(f"--system {system} needs a frame-level router, this one's is {level}")
    if system == "hierarchical":
        try:
            if not options.tree:
                raise ConfigError("routing: tree is needed: the YAML file of the family tree")
            is_of_experts(load_families(options.tree), names, languages)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(
            f"router {folder}: {'; '.join(problems)}; its experts: {' '.join(names)}, its "
            f"languages: {' '.join(languages)}"
        )
    return {name: experts[name] for name in names}


def require_same_setting(model: Backbone, experts: Mapping[str, str]) -> None:
    """Refuse experts that were trained with another tokenizer or context than this decode has.

    Raises:
        ConfigError: Naming all of them.
    """
    problems, digest = [], model.tokens.digest()
    for name, folder in experts.items():
        manifest = read_manifest(folder)
        if manifest.get("context", model.context) != model.context:
            problems.append(f"'{name}' was trained with --context {manifest['context']}")
        if manifest.get("tokenizer_digest", digest) != digest:
            problems.append(f"'{name}' was trained with another tokenizer")
    if problems:
        raise ConfigError(f"{'; '.join(problems)}; this decode has --context {model.context}")


def find_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is a GPU where there is one.

    Raises:
        ConfigError: For what is no device, or is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
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
