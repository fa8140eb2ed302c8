"""The model card: what a model on the hub says of itself (huggingface.co/docs/hub/model-cards)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from espnet_moe.experts.expert_files import read_manifest
from espnet_moe.inference.speech2text import Speech2Text
from espnet_moe.packing.contents import Parts
from espnet_moe.routing.router_files import read_router_manifest

_USE = """\
```python
from espnet_moe import Speech2Text

speech2text = Speech2Text.from_pretrained("{name}")
result = speech2text("recording.wav")
print(result.language, result.text)
```

```
espnet-moe transcribe recording.wav --model {name}
```
"""


def model_card(parts: Parts, model: Speech2Text, name: str, licence_id: str) -> str:
    """Markdown with a YAML head, from what the parts say of themselves.

    Args:
        parts: What is packed.
        model: These parts, loaded.
        name: Of the model on the hub.
        licence_id: The hub's name of the licence, such as ``apache-2.0``, or ``other``.
    """
    manifests = {facts.name: read_manifest(facts.folder) for facts in model.list_experts()}
    languages = sorted({code for m in manifests.values() for code in m.get("languages", ())})
    local = Path(parts.backbone)
    base = local.name if local.exists() else parts.backbone
    head = {
        "library_name": "espnet_moe",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["espnet", "espnet_moe", "audio", "automatic-speech-recognition", "lora"],
        "language": languages,
        "license": licence_id,
    }
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
            f"# {name}\n",
            f"A mixture of experts for speech recognition: `{base}`, frozen, with "
            f"{len(manifests)} LoRA experts"
            + (" and a router that chooses among them.\n" if parts.router is not None else ".\n"),
            "## Use\n",
            _USE.format(name=name),
            "## Experts\n",
            _table(manifests),
            *_router(parts),
            "## Base\n",
            f"SHA-256 of the weights: `{model.digest}`; encoder input: {model.base.context}.\n",
            *_results(parts),
            "## Licence\n",
            "See [LICENSE](LICENSE).\n",
        ]
    )


def _table(manifests: dict[str, dict[str, Any]]) -> str:
    rows = ["| expert | languages | rank | layers | validation WER % | data | commit |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name, manifest in manifests.items():
        options = manifest["options"]
        cells: Sequence[object] = (
            name,
            " ".join(manifest.get("languages", ())),
            options.get("rank", manifest["kind"]),
            f"{' '.join(options['targets'])}, {options['where']}",
            _rounded(manifest.get("metrics", {}).get("wer")),
            f"`{str(manifest.get('data_digest', ''))[:12]}`",
            f"`{str(manifest.get('git_commit', ''))[:12]}`",
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows) + "\n"


def _rounded(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else ""


def _router(parts: Parts) -> list[str]:
    if parts.router is None:
        return []
    manifest = read_router_manifest(parts.router)
    told = f"Network: {manifest['network']}, on encoder layer {manifest['layer']}"
    language = manifest["facts"].get("metrics", {}).get("language", {})
    if (accuracy := language.get("accuracy")) is not None:
        told += f", right on {accuracy:.1f} % of the validation set"
    if (before := language.get("accuracy_before")) is not None:
        told += f" ({before:.1f} % before it was calibrated there)"
    return [f"## Router\n\n{told}; strategy: {parts.strategy or 'hard'}.\n"]


def _results(parts: Parts) -> list[str]:
    if parts.results is None:
        return []
    return ["## Results\n\nIn [RESULTS.md](RESULTS.md).\n"]
