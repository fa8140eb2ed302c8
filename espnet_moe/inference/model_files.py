"""A packed model on disk: everything that a transcription needs, by paths inside one folder.

```
model/
  moe.yaml         what follows, and the strategy
  decode.yaml      options of decoding (as the recipes' conf/decode_*.yaml)
  families.yaml    the family tree, where the options name one
  base/            the backbone: a transformers folder, or an OWSM folder
  experts/<name>/  the experts
  router/          the router, where there is one
  meta.yaml        for espnet_model_zoo
  manifest.json    SHA-256 of all other files; written last
  LICENSE  RESULTS.md  README.md
```
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from espnet_moe.archives import unpacked
from espnet_moe.config import build_options, read_config
from espnet_moe.decoding.decoder import DecodeOptions
from espnet_moe.decoding.loading import read_options
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_files import MANIFEST as EXPERT_MANIFEST
from espnet_moe.files import changed_since

DESCRIPTION, OPTIONS, TREE, META = "moe.yaml", "decode.yaml", "families.yaml", "meta.yaml"
BASE, EXPERTS, ROUTER, MANIFEST = "base", "experts", "router", "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Description:
    """What ``moe.yaml`` says; paths are relative to its folder.

    Attributes:
        format: Version of this layout.
        base: Folder of the backbone.
        base_digest: SHA-256 of its weights (:meth:`Backbone.digest`).
        context: Encoder input, ``variable`` or ``padded``.
        experts: Folder by name.
        router: Folder of the router; empty where there is none.
        strategy: How it decides where a caller says nothing.
    """

    format: int
    base: str
    base_digest: str
    context: str
    experts: Mapping[str, str] = field(default_factory=dict)
    router: str = ""
    strategy: str = ""


@dataclass(frozen=True)
class ModelFiles:
    """A packed model, found and checked.

    Attributes:
        folder: Where it is.
        description: What it says of itself.
        options: Of decoding.
    """

    folder: Path
    description: Description
    options: DecodeOptions

    @property
    def base(self) -> str:
        """Path of the backbone."""
        return str(self.folder / self.description.base)

    @property
    def experts(self) -> dict[str, Path]:
        """Folder by name of the experts."""
        return {name: self.folder / path for name, path in self.description.experts.items()}

    @property
    def router(self) -> Path | None:
        """Folder of the router."""
        return self.folder / self.description.router if self.description.router else None


def find_model(source: str | Path) -> ModelFiles:
    """Find a packed model and check that it is whole.

    Args:
        source: A ``.zip`` (unpacked to the user's cache), a folder, or the name of a model on the
            hub or in espnet_model_zoo.

    Raises:
        UserError: Where none is there, or it is not what its manifest describes.
    """
    path = Path(source)
    if path.is_dir():
        return read_model(path)
    if path.is_file():
        return read_model(unpacked(path))
    name = str(source)
    if name.startswith((".", "/", "~")) or path.suffix == ".zip" or not name.strip():
        raise UserError(
            f"model '{source}' does not exist: give a packed .zip, its folder, or the name of a "
            "model on the hub"
        )
    found = _downloaded(name)
    return read_model(found if found.is_dir() else unpacked(found))


def _downloaded(name: str) -> Path:
    """Let espnet_model_zoo fetch a model: an archive, or a folder in its cache of the hub."""
    from espnet_model_zoo.downloader import ModelDownloader

    try:
        return Path(ModelDownloader().download(name))
    except Exception as error:  # the hub's, requests', pandas' own kinds
        raise UserError(
            f"model '{name}' is no file or folder here, and could not be fetched: {error}"
        ) from error


def read_model(folder: Path) -> ModelFiles:
    """Read and check a packed model's folder.

    Raises:
        UserError: For a folder without one, or with files that are missing, changed or elsewhere.
    """
    if not (folder / DESCRIPTION).is_file():
        raise UserError(
            f"{folder} holds no packed model ({DESCRIPTION} is missing): pack one with "
            "`espnet-moe pack`, or give backbone, experts and router to Speech2Text(…)"
        )
    conf = read_config(folder / DESCRIPTION)
    if conf.get("format") != FORMAT:
        raise UserError(
            f"{folder / DESCRIPTION} is of the format {conf.get('format')}; this version reads "
            f"{FORMAT}"
        )
    said = build_options(Description, conf, str(folder / DESCRIPTION))
    if not isinstance(said.experts, dict):
        raise UserError(
            f"{folder / DESCRIPTION}: experts is a folder by name, not {said.experts!r}"
        )
    paths = [said.base, *said.experts.values(), *([said.router] if said.router else [])]
    if outside := [p for p in paths if not _is_inside(p)]:
        raise UserError(f"{folder / DESCRIPTION} names {outside[0]!r}, which is not in its folder")
    if changed := changed_since(folder / MANIFEST):
        raise UserError(
            f"{folder} is not whole: {', '.join(changed[:3])} "
            f"{'is' if len(changed) == 1 else 'are'} missing or changed since it was packed: "
            "fetch or pack it again"
        )
    options = read_options(str(folder / OPTIONS))
    if options.routing.tree:
        tree = str(folder / options.routing.tree)
        options = replace(options, routing=replace(options.routing, tree=tree))
    return ModelFiles(folder, said, options)


def _is_inside(path: object) -> bool:
    return isinstance(path, str) and not (
        PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts
    )


def find_expert(source: str | Path) -> Path:
    """The folder of an expert: itself, or what an expert's archive holds.

    Raises:
        UserError: For an archive without one expert.
    """
    path = Path(source)
    if not path.is_file():
        return path
    folder = unpacked(path)
    found = sorted(folder.glob(f"{EXPERTS}/*/{EXPERT_MANIFEST}"))
    if len(found) != 1:
        raise UserError(
            f"{path} holds {len(found) or 'no'} experts: an expert's archive has one, "
            f"{EXPERTS}/<name>/{EXPERT_MANIFEST}"
        )
    return found[0].parent
