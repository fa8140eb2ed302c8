"""What goes into a package: files in one folder, the same from the same parts.

The layout is in :mod:`espnet_moe.inference.model_files`.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from espnet_moe import __version__
from espnet_moe.decoding.decoder import DecodeOptions
from espnet_moe.errors import UserError
from espnet_moe.experts import expert_files
from espnet_moe.files import write_manifest
from espnet_moe.inference.model_files import (
    BASE,
    DESCRIPTION,
    EXPERTS,
    FORMAT,
    MANIFEST,
    META,
    OPTIONS,
    ROUTER,
    TREE,
    Description,
    find_expert,
)
from espnet_moe.inference.speech2text import Speech2Text
from espnet_moe.routing import router_files

LICENCE, RESULTS, CARD = "LICENSE", "RESULTS.md", "README.md"


@dataclass(frozen=True)
class Parts:
    """What a package is made of.

    Attributes:
        backbone: Folder, file, archive or hub name.
        experts: Folder by name.
        router: Folder; ``None`` where experts are chosen by the language that is said.
        context: Encoder input; that of the experts if ``None``.
        strategy: What the model does where a caller says nothing.
        options: Of decoding.
        licence: File with the terms under which the package may be used.
        results: ``RESULTS.md`` of its experiment.
    """

    backbone: str
    licence: Path
    experts: Mapping[str, str | Path] = field(default_factory=dict)
    router: str | Path | None = None
    context: str | None = None
    strategy: str = ""
    options: DecodeOptions = field(default_factory=DecodeOptions)
    results: Path | None = None

    def require_files(self) -> None:
        """Refuse licence and results that are not there; before any weights are read."""
        for file in (self.licence, self.results):
            if file is not None and not file.is_file():
                raise UserError(f"{file} does not exist")

    def load(self, device: str) -> Speech2Text:
        """The model that is packed, as its parts make it."""
        return Speech2Text(
            self.backbone,
            self.experts,
            self.router,
            context=self.context,
            strategy=self.strategy,
            options=self.options,
            device=device,
        )


def write_model(folder: Path, parts: Parts, model: Speech2Text) -> None:
    """Write all files of a model but its card and manifest.

    Args:
        folder: A new one.
        parts: What it is made of.
        model: These parts, loaded.
    """
    model.base.save_pretrained(folder / BASE)
    _halve(folder / BASE)
    experts = {name: f"{EXPERTS}/{name}" for name in parts.experts}
    for name, path in experts.items():
        _copy_expert(parts.experts[name], folder / path)
    if parts.router is not None:
        for name in (router_files.WEIGHTS, router_files.MANIFEST):
            _copy(Path(parts.router) / name, folder / ROUTER / name)
    options = parts.options
    if options.routing.tree:
        _copy(Path(options.routing.tree), folder / TREE)
        options = replace(options, routing=replace(options.routing, tree=TREE))
    _write_yaml(folder / OPTIONS, _plain(asdict(options)))
    said = Description(
        FORMAT,
        BASE,
        model.digest,
        model.base.context,
        experts,
        ROUTER if parts.router is not None else "",
        parts.strategy,
    )
    _write_yaml(folder / DESCRIPTION, asdict(said))
    _write_papers(folder, parts, {"moe_config": DESCRIPTION})


def write_expert(folder: Path, parts: Parts, name: str) -> None:
    """Write the files of one expert's package, which names its base and does not hold it."""
    _copy_expert(parts.experts[name], folder / EXPERTS / name)
    _write_papers(folder, parts, {"expert": f"{EXPERTS}/{name}/{expert_files.MANIFEST}"})


def seal(folder: Path) -> None:
    """Write the manifest over all files that are there, last of all."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_manifest(folder / MANIFEST, files)


def _halve(folder: Path) -> None:
    """Store a base in half precision where that loses nothing, as most are published."""
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.pth")]):
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, weights_only=True, mmap=True)
        halves = {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }
        if not all(torch.equal(halves[name].to(t.dtype), t) for name, t in state.items()):
            return
        beside = path.with_name(f"half{path.suffix}")
        if safe:
            save_file(halves, beside, metadata={"format": "pt"})
        else:
            torch.save(halves, beside)
        del state  # it may be the file itself, mapped
        beside.replace(path)


def _copy_expert(source: str | Path, folder: Path) -> None:
    for name in (expert_files.CONFIG, expert_files.WEIGHTS, expert_files.MANIFEST):
        _copy(find_expert(source) / name, folder / name)


def _write_papers(folder: Path, parts: Parts, files: Mapping[str, str]) -> None:
    _copy(parts.licence, folder / LICENCE)
    if parts.results is not None:
        _copy(parts.results, folder / RESULTS)
    # What espnet_model_zoo asks for. It rewrites the YAML files that are named under yaml_files,
    # which spoils token lists that hold a path's words: none is named.
    meta = {"espnet_moe": __version__, "files": dict(files), "yaml_files": {}}
    _write_yaml(folder / META, meta)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _plain(value: Any) -> Any:
    """Tuples as lists, as YAML has them."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
