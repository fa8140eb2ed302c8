"""Embeddings of utterances: what the router's layer of the frozen encoder says, pooled over time.

    exp/embeddings/<set>/
      embeddings.ark    a vector an utterance (Kaldi archive)
      embeddings.scp    utt_id /path/of/embeddings.ark:offset
      embeddings.json   base, layer, pooling, context, data; written last: with it the set is whole

The scp holds the archive's absolute path, so that Kaldi's tools read it from anywhere;
:func:`read_embeddings` takes the archive beside it, so that the folder can be moved.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import kaldiio
import numpy as np
from tqdm import tqdm

from espnet_moe.config import ConfigError
from espnet_moe.data.audio import load_audio
from espnet_moe.data.datadir import load_datadir
from espnet_moe.data.files import listed, read_lines, write_table, write_text
from espnet_moe.data.utterance import SAMPLE_RATE, Utterance
from espnet_moe.errors import UserError
from espnet_moe.files import atomic, remove_leftovers, sha256

if TYPE_CHECKING:  # clusters are made from the files, without torch
    import torch

ARK, SCP, MANIFEST = "embeddings.ark", "embeddings.scp", "embeddings.json"
FORMAT = 1
POOLINGS = ("mean", "mean_std")


class EmbeddingError(UserError):
    """Embeddings that are missing, damaged, or of something else than is asked for."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a set, and what they were made with.

    Attributes:
        ids: Utterance ids, in byte order.
        values: ``(n, dim)`` float32.
        base_digest: Of the backbone.
        layer: Encoder layer ``k`` that they were taken at.
        pooling: ``mean`` or ``mean_std``.
        context: ``variable`` or ``padded``: what the encoder was given.
        folder: Where they were read.
    """

    ids: tuple[str, ...]
    values: np.ndarray
    base_digest: str
    layer: int
    pooling: str
    context: str
    folder: str = ""

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Embeddings ``(len(ids), dim)`` of these utterances, in their order.

        Raises:
            EmbeddingError: Naming the utterances that have none.
        """
        place = {key: i for i, key in enumerate(self.ids)}
        if missing := [key for key in ids if key not in place]:
            raise EmbeddingError(
                f"{len(missing)} utterances have no embedding in {self.folder or 'the set'}; "
                f"extract them again from the data as it is now (stage 5):\n  {listed(missing)}"
            )
        return self.values[[place[key] for key in ids]]


def extract_embeddings(
    backbone: Any,
    layer: int,
    pooling: str,
    datadir: str | Path,
    out: str | Path,
    batch_size: int = 16,
    device: str = "auto",
) -> None:
    """Write the embeddings of a data directory, longest utterances first, in batches.

    An earlier set in ``out`` stays until this one is complete.

    Args:
        backbone: The frozen backbone (``encode_lower``, ``digest``, ``context``,
            ``num_encoder_layers``, ``max_seconds``); moved to ``device``.
        layer: Encoder layer ``k`` in ``0..num_encoder_layers``, as the router reads it.
        pooling: Over the valid frames: ``mean`` or ``mean_std``.
        datadir: Formatted data directory.
        out: Folder of the set, e.g. ``exp/embeddings/train_hi``.
        batch_size: Utterances encoded at once.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:N``.

    Raises:
        EmbeddingError: For data that cannot be embedded, before any is.
        ConfigError: For a layer, pooling, batch size or device that cannot be used.
    """
    from espnet_moe.memory import FOR_EMBEDDING, BatchSize, explained

    place = _require_settings(backbone, layer, pooling, batch_size, device)
    utterances = require_data(datadir, backbone.max_seconds)
    backbone.to(place).eval()
    folder, dim = Path(out), 0
    remove_leftovers(folder)
    offsets: dict[str, int] = {}
    progress = tqdm(total=len(utterances), desc=f"embed {folder.name}", unit="utt", disable=None)
    with progress as bar, atomic(folder / ARK) as temporary:
        with open(temporary, "wb") as ark:
            for batch in _batches(utterances, batch_size):
                size = BatchSize(len(batch), batch[0].utt_id, batch[0].duration or 0.0)
                with explained(size, FOR_EMBEDDING, str(backbone.device)):
                    values = _embed(backbone, layer, pooling, batch)
                dim = values.shape[1]
                for utt, row in zip(batch, values, strict=True):
                    offsets[utt.utt_id] = _append(ark, utt.utt_id, row)
                bar.update(len(batch))
        # Until the new one is written, nothing may call the half-replaced set whole.
        (folder / MANIFEST).unlink(missing_ok=True)
    path = os.path.abspath(folder / ARK)
    write_table(folder / SCP, {key: f"{path}:{offset}" for key, offset in offsets.items()})
    manifest = {
        "format": FORMAT,
        "base_digest": backbone.digest(),
        "layer": layer,
        "pooling": pooling,
        "context": backbone.context,
        "dim": dim,
        "count": len(offsets),
        "data": str(datadir),
        "data_digest": data_digest(datadir),
        "sha256": sha256(folder / ARK),
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def embed(
    backbone: Any, layer: int, pooling: str, speech: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Embeddings of a batch: what a router at this layer pools, padding of any kind left out.

    Args:
        backbone: See :func:`extract_embeddings`.
        layer: Encoder layer.
        pooling: ``mean`` or ``mean_std``.
        speech: ``(batch, samples)`` at 16 kHz.
        lengths: ``(batch,)`` samples.

    Returns:
        ``(batch, dim)`` or, for ``mean_std``, ``(batch, 2 · dim)``, in single precision.
    """
    from espnet_moe.routing.pooling import pool

    lower = backbone.encode_lower(speech, lengths, layer)
    return pool(lower.hidden.float(), lower.spoken, pooling)


def read_embeddings(folder: str | Path) -> Embeddings:
    """Read and check a set of embeddings.

    Args:
        folder: ``exp/embeddings/<set>``.

    Raises:
        EmbeddingError: For a folder that holds no whole set, a set of another format, or files that
            do not belong together.
    """
    folder = Path(folder)
    manifest = read_embedding_manifest(folder)
    count, dim = int(manifest["count"]), int(manifest["dim"])
    if sha256(folder / ARK) != manifest["sha256"]:
        raise EmbeddingError(
            f"{folder / ARK} is not the file that {MANIFEST} describes (SHA-256 differs): "
            "extract the embeddings again (stage 5)"
        )
    ids = tuple(line.split(maxsplit=1)[0] for _, line in read_lines(folder / SCP))
    place = {key: i for i, key in enumerate(ids)}
    values = np.zeros((count, dim), dtype=np.float32)
    found = set()
    for key, row in kaldiio.load_ark(str(folder / ARK)):
        if row.shape != (dim,):
            raise EmbeddingError(
                f"{folder}: {key} has {row.size} values, {MANIFEST} tells of {dim}: extract the "
                "embeddings again (stage 5)"
            )
        found.add(key)
        if place.get(key, count) < count:  # what does not match is told below
            values[place[key]] = row
    if found != set(ids) or not len(ids) == len(found) == count:
        raise EmbeddingError(
            f"{folder}: {MANIFEST} tells of {count} utterances, {SCP} of {len(ids)}, {ARK} of "
            f"{len(found)}, {len(found & set(ids))} of them the same: extract the embeddings again "
            "(stage 5)"
        )
    facts = {key: manifest[key] for key in ("base_digest", "layer", "pooling", "context")}
    return Embeddings(ids, values, folder=str(folder), **facts)


def read_embedding_manifest(folder: str | Path) -> dict[str, Any]:
    """Read and check what a set of embeddings says of itself.

    Raises:
        EmbeddingError: For a folder that holds no whole set, or one of another format.
    """
    folder = Path(folder)
    if missing := [name for name in (ARK, SCP, MANIFEST) if not (folder / name).is_file()]:
        raise EmbeddingError(
            f"{folder} holds no whole set of embeddings: {', '.join(missing)} missing; extract "
            "them (stage 5)"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise EmbeddingError(f"{folder / MANIFEST} is not JSON: {error}") from error
    told = manifest.get("format") if isinstance(manifest, dict) else None
    if told != FORMAT:
        raise EmbeddingError(f"{folder}: format {told}; this version reads format {FORMAT}")
    needed = ["base_digest", "layer", "pooling", "context", "dim", "count", "data_digest", "sha256"]
    if lost := [key for key in needed if key not in manifest]:
        raise EmbeddingError(f"{folder / MANIFEST} is incomplete: it has no {', '.join(lost)}")
    return dict(manifest)


def require_embeddings(
    embeddings: Embeddings,
    base_digest: str | None = None,
    layer: int | None = None,
    context: str | None = None,
    pooling: str | None = None,
) -> None:
    """Check that embeddings are of this base, layer, context and pooling.

    Args:
        embeddings: As read.
        base_digest: Of the backbone in use; ``None``, here and below, checks nothing.
        layer: That the router reads.
        context: That the backbone is used with.
        pooling: That is expected.

    Raises:
        EmbeddingError: Naming both sides of everything that differs.
    """
    asked = {"base": base_digest, "layer": layer, "context": context, "pooling": pooling}
    _require_same(embeddings, asked, "what is asked for")


def join_embeddings(parts: Sequence[Embeddings]) -> Embeddings:
    """Embeddings of several sets as one.

    Raises:
        EmbeddingError: For no set, sets of different bases, layers, contexts or poolings, and
            utterances that are in two of them.
    """
    if not parts:
        raise EmbeddingError("no set of embeddings was given")
    first = parts[0]
    for part in parts[1:]:
        _require_same(part, _settings(first), first.folder or "the first set")
    ids = [key for part in parts for key in part.ids]
    if len(set(ids)) < len(ids):
        double = sorted(key for key, n in Counter(ids).items() if n > 1)
        raise EmbeddingError(f"utterances are in two sets of embeddings:\n  {listed(double)}")
    order = sorted(range(len(ids)), key=lambda i: ids[i].encode())
    return Embeddings(
        tuple(ids[i] for i in order),
        np.concatenate([part.values for part in parts])[order],
        first.base_digest,
        first.layer,
        first.pooling,
        first.context,
        " ".join(part.folder for part in parts),
    )


def require_data(datadir: str | Path, max_seconds: float) -> list[Utterance]:
    """The utterances of a data directory that can be embedded.

    Args:
        datadir: The folder.
        max_seconds: Longest utterance that the backbone takes.

    Raises:
        EmbeddingError: For an empty set, and utterances that are too long.
    """
    data = load_datadir(datadir)
    if not data.utterances:
        raise EmbeddingError(f"{datadir} holds no utterance")
    samples = data.num_samples
    long = [key for key, count in samples.items() if count / SAMPLE_RATE > max_seconds]
    if long:
        raise EmbeddingError(
            f"{len(long)} utterances of {datadir} are longer than the {max_seconds:.0f} s that "
            f"this backbone takes; filter with --max_wav_duration:\n  {listed(long)}"
        )
    return list(data.utterances)


def data_digest(datadir: str | Path) -> str:
    """SHA-256 of what embeddings depend on in a data directory: audio files and their lengths."""
    paths = (Path(datadir) / name for name in ("wav.scp", "utt2num_samples"))
    return sha256(*(path for path in paths if path.is_file()))


def _settings(embeddings: Embeddings) -> dict[str, Any]:
    return {
        "base": embeddings.base_digest,
        "layer": embeddings.layer,
        "context": embeddings.context,
        "pooling": embeddings.pooling,
    }


def _require_same(embeddings: Embeddings, asked: dict[str, Any], who: str) -> None:
    have = _settings(embeddings)
    problems = [
        f"{name} {_shown(have[name])} against {_shown(value)}"
        for name, value in asked.items()
        if value is not None and value != have[name]
    ]
    if problems:
        raise EmbeddingError(
            f"embeddings {embeddings.folder} differ from {who}: {'; '.join(problems)}; extract "
            "them with the settings in use (stage 5)"
        )


def _shown(value: Any) -> str:
    return f"[{value[:12]}]" if isinstance(value, str) and len(value) > 12 else str(value)


def _require_settings(
    backbone: Any, layer: int, pooling: str, batch_size: int, device: str
) -> torch.device:
    import torch

    problems = []
    if not 0 <= layer <= backbone.num_encoder_layers:
        problems.append(f"encoder layer {layer} is not in 0..{backbone.num_encoder_layers}")
    if pooling not in POOLINGS:
        problems.append(f"pooling '{pooling}' is unknown: choose one of {', '.join(POOLINGS)}")
    if batch_size < 1:
        problems.append(f"batch_size is at least 1, not {batch_size}")
    gpus = torch.cuda.device_count()
    try:
        place = torch.device(("cuda" if gpus else "cpu") if device == "auto" else device)
        known = place.type == "cpu" or (place.type == "cuda" and (place.index or 0) < gpus)
    except RuntimeError:
        known = False
    if not known:
        problems.append(
            f"device '{device}' is not there: use auto, cpu, cuda or cuda:N (torch sees "
            f"{gpus or 'no'} GPU here)"
        )
    if problems:
        raise ConfigError("; ".join(problems))
    return place


def _batches(utterances: Sequence[Utterance], size: int) -> Iterator[list[Utterance]]:
    """Longest first: what does not fit into memory fails at once."""
    ordered = sorted(utterances, key=lambda utt: (-(utt.duration or 0.0), utt.utt_id))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _embed(backbone: Any, layer: int, pooling: str, batch: Sequence[Utterance]) -> np.ndarray:
    import torch

    waves = [torch.from_numpy(load_audio(utt.audio)) for utt in batch]
    lengths = torch.tensor([len(x) for x in waves], device=backbone.device)
    speech = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(backbone.device)
    with torch.inference_mode():
        values = embed(backbone, layer, pooling, speech, lengths).cpu().numpy()
    if bad := [
        u.utt_id for u, row in zip(batch, values, strict=True) if not np.isfinite(row).all()
    ]:
        raise EmbeddingError(f"embeddings that are not finite, of:\n  {listed(bad)}")
    return values


def _append(ark: BinaryIO, key: str, row: np.ndarray) -> int:
    """Write a vector to an archive; return the offset that an scp names."""
    offset = ark.tell() + len(f"{key} ".encode())
    kaldiio.save_ark(ark, {key: row.astype(np.float32)})
    return offset
