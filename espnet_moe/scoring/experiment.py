"""What an experiment is made of: its experts (``assign_*/experts.json``) and its routers."""

import logging
from pathlib import Path
from typing import Any

from espnet_moe.errors import UserError
from espnet_moe.scoring.files import read_json_object

log = logging.getLogger(__name__)


def read_experts(exp: Path) -> list[dict[str, Any]]:
    """Describe every expert assignment in an experiment folder.

    Returns:
        ``experts_by``, ``count``, ``experts``, ``sizes`` as the assignment tells them, and for
        clusters ``clusters`` (how many there were), ``nmi`` and ``purity`` against languages.
    """
    found = []
    for path in sorted(exp.glob("assign_*/experts.json")):
        manifest = _read(path)
        experts = manifest.get("experts")
        if not isinstance(experts, list):
            continue
        clusters = manifest.get("clusters")
        report = clusters if isinstance(clusters, dict) else {}
        found.append(
            {
                "path": str(path),
                "experts_by": manifest.get("experts_by"),
                "count": len(experts),
                "experts": experts,
                "sizes": manifest.get("sizes") or {},
                "language_shares": manifest.get("language_shares") or {},
                "clusters": report.get("clusters"),
                "nmi": report.get("nmi"),
                "purity": report.get("purity"),
                "notes": manifest.get("notes") or [],
            }
        )
    return found


def read_routers(exp: Path) -> list[dict[str, Any]]:
    """Describe every router in an experiment folder; not those that the recipe put aside (.old).

    Returns:
        ``name`` (the folder's), ``network``, ``layer``, ``experts``, ``temperature``, ``metrics``
        of the development set, and ``collapsed``: the experts that it hardly ever chose there.
    """
    found = []
    for path in sorted(exp.glob("*/router/router.json")):
        if path.parent.parent.suffix == ".old":
            continue
        manifest = _read(path)
        facts = manifest.get("facts")
        facts = facts if isinstance(facts, dict) else {}
        found.append(
            {
                "name": path.parent.parent.name,
                "network": manifest.get("network"),
                "layer": manifest.get("layer"),
                "experts": manifest.get("experts") or [],
                "temperature": manifest.get("temperature"),
                "metrics": facts.get("metrics") or {},
                "collapsed": list(facts.get("collapsed") or []),
            }
        )
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except UserError as error:
        log.warning("left out of the results: %s", error)
        return {}
