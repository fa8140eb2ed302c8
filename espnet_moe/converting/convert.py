"""From an adapter's files to an expert's folder."""

from collections.abc import Sequence
from pathlib import Path

from espnet_moe.backbones.loading import load_backbone
from espnet_moe.converting.adapters import write_expert
from espnet_moe.converting.espnet_files import read_espnet
from espnet_moe.converting.peft_files import CONFIG, PICKLED, SAFE, read_peft
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_files import MANIFEST
from espnet_moe.files import sha256


def convert(
    source: str | Path,
    backbone: str,
    out: str | Path,
    name: str,
    languages: Sequence[str] = (),
    context: str = "padded",
    config: str = "",
) -> None:
    """Make an expert of an adapter that PEFT or ESPnet has saved.

    Args:
        source: PEFT's folder, or a checkpoint of an ESPnet training.
        backbone: The model that it was trained on.
        out: The expert's folder; must not be there.
        name: What it is called.
        languages: Of its training data.
        context: How that model heard its speech: ``padded`` to 30 s, as transformers and ESPnet do.
        config: The ESPnet training's ``config.yaml``; the one beside the checkpoint if empty.

    Raises:
        UserError: For what is no such adapter, or does not fit the backbone.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise UserError(f"{out} is there already: name a new folder")
    if (source / MANIFEST).is_file():
        raise UserError(f"{source} is an expert already; PEFT reads it as it is")
    if not source.exists():
        raise UserError(f"{source} does not exist")
    is_peft = source.is_dir()
    if is_peft and not (source / CONFIG).is_file():
        raise UserError(
            f"{source} holds no {CONFIG}: give PEFT's folder, or the .pth of an ESPnet training"
        )
    model = load_backbone(backbone, context)
    updates = read_peft(source) if is_peft else read_espnet(source, model, config)
    weights = source
    if is_peft:
        weights = source / SAFE if (source / SAFE).is_file() else source / PICKLED
    origin = {"format": "peft" if is_peft else "espnet", "sha256": sha256(weights)}
    facts = {
        "backbone": backbone,
        "context": context,
        "languages": list(languages),
        "source": origin,
    }
    write_expert(updates, model, out, name, facts)
