"""Making packages: written beside their place, loaded again in a fresh process, then put there."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from espnet_moe.archives import write_archive
from espnet_moe.decoding.decoder import DecodeOptions
from espnet_moe.errors import UserError
from espnet_moe.files import is_disk_error
from espnet_moe.inference.model_files import META
from espnet_moe.inference.speech2text import Speech2Text
from espnet_moe.packing.card import model_card
from espnet_moe.packing.check import decode, require_same, sample_of
from espnet_moe.packing.contents import CARD, Parts, seal, write_expert, write_model


def pack_model(parts: Parts, out: Path, sample: Path | None = None, device: str = "auto") -> Path:
    """Pack everything into an archive that espnet_model_zoo and ``from_pretrained`` take.

    The same parts give the same bytes.

    Args:
        parts: What to pack.
        out: The ``.zip`` to write; one that is there is replaced when the new one is proven.
        sample: A recording that the package must decode as the parts do; made tones if ``None``.
        device: Where that is done.

    Returns:
        ``out``.

    Raises:
        UserError: For parts that do not fit together, a full disk, or a package that does not do
            what its parts do; nothing is left of it then.
    """
    _require_zip(out)
    return _packed(parts, out, sample, device, write_model, lambda path: {"model": str(path)})


def pack_expert(
    parts: Parts, name: str, out: Path, sample: Path | None = None, device: str = "auto"
) -> Path:
    """Pack one expert alone; it names its base by digest, and works with that only.

    Args:
        parts: The expert among them, and the backbone, which is not packed.
        name: Which expert.
        out: See :func:`pack_model`, as are the others.
        sample: Likewise.
        device: Likewise.

    Raises:
        UserError: See :func:`pack_model`; also for a name that is none of the experts.
    """
    _require_zip(out)
    if name not in parts.experts:
        raise UserError(
            f"there is no expert '{name}'; experts: {' '.join(parts.experts) or 'none'}"
        )

    def source(path: Path) -> dict[str, Any]:
        given = {"backbone": parts.backbone, "experts": {name: str(path)}}
        return given if parts.context is None else {**given, "context": parts.context}

    def write(folder: Path, parts: Parts, model: Speech2Text) -> None:
        write_expert(folder, parts, name)

    # What it is used with later is not in the package: no router, no options of decoding.
    alone = replace(
        parts,
        experts={name: parts.experts[name]},
        router=None,
        strategy="",
        options=DecodeOptions(),
    )
    return _packed(alone, out, sample, device, write, source)


def pack_hub(
    parts: Parts,
    out: Path,
    name: str,
    licence_id: str,
    sample: Path | None = None,
    device: str = "auto",
) -> Path:
    """Write a folder that can be uploaded to the hub: the same files, and a model card.

    Args:
        parts: What to pack.
        out: A folder that is not there yet.
        name: What the model will be called on the hub, ``<owner>/<model>``.
        licence_id: The hub's name of the licence, such as ``apache-2.0``, or ``other``.
        sample: See :func:`pack_model`.
        device: Likewise.

    Raises:
        UserError: See :func:`pack_model`; also for a folder that is there.
    """
    if out.exists():
        raise UserError(f"{out} is there already: name a new folder")

    def write(folder: Path, parts: Parts, model: Speech2Text) -> None:
        write_model(folder, parts, model)
        card = model_card(parts, model, name, licence_id)
        (folder / CARD).write_text(card, encoding="utf-8")

    return _packed(
        parts, out, sample, device, write, lambda path: {"model": str(path)}, zipped=False
    )


def _packed(
    parts: Parts,
    out: Path,
    sample: Path | None,
    device: str,
    write: Callable[[Path, Parts, Speech2Text], None],
    source: Callable[[Path], Mapping[str, Any]],
    zipped: bool = True,
) -> Path:
    """Load the parts, write, prove, put in place."""
    parts.require_files()
    speech = sample_of(sample)
    model = parts.load(device)
    want = decode(model, speech)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as place:
        made = Path(place) / "content"
        made.mkdir()
        try:
            write(made, parts, model)
            seal(made)
            if zipped:
                made = Path(place) / out.name
                write_archive(Path(place) / "content", made, first=[META])
        except (OSError, RuntimeError) as error:
            if not is_disk_error(error):
                raise
            raise UserError(f"could not write {out}: {error}") from error
        del model  # the fresh process needs the memory
        require_same(source(made), want, sample, device)
        if zipped:
            made.replace(out)
        else:
            shutil.move(made, out)
            out.chmod(0o755)
    return out


def _require_zip(out: Path) -> None:
    if out.suffix != ".zip":
        raise UserError(f"{out} has no .zip at its end: espnet_model_zoo goes by the name")
