"""What every scoring file shares: its error, and JSON that is checked on the way in and out."""

import json
import math
from pathlib import Path
from typing import Any

from espnet_moe.errors import UserError


class ScoringError(UserError):
    """Hypotheses, references or earlier results that cannot be scored as they are."""


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ScoringError: When it is missing, is not UTF-8, or holds something else.
    """
    try:
        content = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ScoringError(f"{path} does not exist; run the stage that makes it") from None
    except UnicodeDecodeError as error:
        raise ScoringError(f"{path} is not UTF-8 ({error}); make it again") from None
    return parse_json_object(content, str(path))


def parse_json_object(content: str, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        content: The JSON text.
        where: The file, and line where there is one, for the error message.

    Raises:
        ScoringError: When it is not JSON, or JSON of another kind than an object.
    """
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise ScoringError(f"{where} is not JSON ({error}); make it again") from None
    if not isinstance(value, dict):
        raise ScoringError(f"{where} holds a JSON {type(value).__name__}, not an object")
    return value


def to_json(value: Any) -> str:
    """Return indented JSON that every reader accepts: NaN and infinities become ``null``."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
