"""Sending a hub folder (:func:`.packages.pack_hub`) to the hub: checked whole, then one commit."""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from espnet_moe.errors import UserError
from espnet_moe.files import manifest_names
from espnet_moe.inference.model_files import MANIFEST, read_model
from espnet_moe.packing.contents import CARD

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# What the hub and its downloads put beside a model; it stays here.
_OF_THE_HUB = (".gitattributes", ".cache/huggingface/*")
_NO_TOKEN = (
    "no token of the hub is set: make one that may write (huggingface.co, Settings, Access "
    "Tokens), then `export HF_TOKEN=hf_…`, or log in once with `hf auth login`"
)


@dataclass(frozen=True)
class HubFolder:
    """A folder that may be sent: its package is whole and nothing else is in it.

    Attributes:
        folder: Where it is.
        sizes: Bytes by path inside the folder, in order.
    """

    folder: Path
    sizes: dict[str, int]


def read_hub_folder(folder: Path) -> HubFolder:
    """Find a package in a folder, and check that it is whole and nothing else.

    Raises:
        UserError: For a folder without one, files that are missing or changed, no model card, and
            files that are not of the package: they would be published, too.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: make one with `espnet-moe pack hub`")
    read_model(folder)
    members = {*manifest_names(folder / MANIFEST), MANIFEST}
    if CARD not in members:
        raise UserError(
            f"{folder} has no model card ({CARD}): make the folder with `espnet-moe pack hub`"
        )
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    for name in [n for n in names if any(fnmatch(n, pattern) for pattern in _OF_THE_HUB)]:
        del names[name]
    if strangers := sorted(names.keys() - members):
        raise UserError(
            f"{folder} holds what was not packed and would be published, too: "
            f"{', '.join(strangers[:3])}{' …' if len(strangers) > 3 else ''}; move it elsewhere"
        )
    return HubFolder(folder, {name: path.stat().st_size for name, path in names.items()})


def require_name(name: str) -> None:
    """Refuse a name that no model on the hub can have.

    Raises:
        UserError: For anything but ``<owner>/<model>``.
    """
    if _NAME.fullmatch(name) is None:
        raise UserError(f"name '{name}' is none of the hub: it is <owner>/<model>")


def address(name: str) -> str:
    """Where a model of this name is, once it was sent."""
    from huggingface_hub import HfApi

    return f"{HfApi().endpoint}/{name}"


def upload(content: HubFolder, name: str, private: bool = False) -> str:
    """Send a folder as one commit; the model is made if it is not there.

    Args:
        content: What :func:`read_hub_folder` has checked.
        name: ``<owner>/<model>``.
        private: Whether a model that is made now is seen by its owner only; one that is there
            stays as it is.

    Returns:
        Address of the commit.

    Raises:
        UserError: Without a token, before anything is sent; for a hub that refuses or is away.
    """
    from huggingface_hub import HfApi, get_token

    require_name(name)
    token = get_token()
    if token is None:
        raise UserError(_NO_TOKEN)
    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=content.folder,
            commit_message="Upload a packed mixture",
            ignore_patterns=list(_OF_THE_HUB),
        )
    except Exception as error:  # the hub's and the HTTP library's own kinds
        raise UserError(f"'{name}' could not be uploaded: {error}") from error
    return str(commit.commit_url)
