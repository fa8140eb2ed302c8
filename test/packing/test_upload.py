"""Uploading: what is listed, what is sent, and what is refused before anything is sent."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from espnet_moe.bin import upload as command
from espnet_moe.errors import UserError
from espnet_moe.packing import packages
from espnet_moe.packing.contents import Parts
from espnet_moe.packing.packages import pack_hub

NAME = "me/mixture"


@pytest.fixture(scope="module")
def packed(mixture, tmp_path_factory):
    """A hub folder; that it is proven has a test of its own."""
    licence = Path(__file__).resolve().parents[2] / "LICENSE"
    parts = Parts(mixture.backbone, licence, mixture.experts, mixture.router)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "require_same", lambda *_: None)
        out = tmp_path_factory.mktemp("upload") / "hub"
        return pack_hub(parts, out, NAME, "apache-2.0", device="cpu")


@pytest.fixture
def folder(packed, tmp_path):
    return Path(shutil.copytree(packed, tmp_path / "hub"))


class Hub:
    """The hub's side: a list of what it was told."""

    def __init__(self):
        self.told = []
        self.refuse = None

    def create_repo(self, name, *, private, exist_ok):
        if self.refuse:
            raise self.refuse
        self.told.append(("create", name, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message, ignore_patterns):
        files = [p.relative_to(folder_path).as_posix() for p in folder_path.rglob("*")
                 if p.is_file()]  # fmt: skip
        sent = huggingface_hub.utils.filter_repo_objects(files, ignore_patterns=ignore_patterns)
        self.told.append(("upload", repo_id, sorted(sent)))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch):
    found = Hub()

    def api(token=None):
        found.token, found.endpoint = token, "https://hub"
        return found

    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_mine")
    return found


def files_of(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_dry_run_sends_nothing(folder, hub, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    command.main([str(folder), "--name", NAME])
    *rows, total, where = capsys.readouterr().out.splitlines()
    assert [row.split()[2] for row in rows] == files_of(folder)
    assert f"{(folder / 'moe.yaml').stat().st_size} B  moe.yaml" in "\n".join(rows)
    assert total.endswith(f"in {len(rows)} files")
    assert where == "would go to https://hub/me/mixture (public if new); --upload true sends it"
    assert hub.told == []


def test_an_upload_is_the_whole_package_and_no_more(folder, hub, capsys):
    want = files_of(folder)
    (folder / ".gitattributes").write_text("*.zip")
    (folder / ".cache/huggingface").mkdir(parents=True)
    (folder / ".cache/huggingface/x.lock").touch()
    command.main([str(folder), "--name", NAME, "--private", "true", "--upload", "true"])
    assert hub.told == [("create", NAME, True, True), ("upload", NAME, want)]
    assert hub.token == "hf_mine"
    assert capsys.readouterr().out.endswith("uploaded: https://hub/me/mixture/commit/1\n")


def test_no_token(folder, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"no token.*Access Tokens.*export HF_TOKEN=hf_") as error:
        command.main([str(folder), "--name", NAME, "--upload", "true"])
    assert hub.told == [] and "\n" not in str(error.value)


def test_a_hub_that_refuses(folder, hub):
    hub.refuse = OSError("403 Forbidden")
    with pytest.raises(UserError, match="'me/mixture' could not be uploaded: 403 Forbidden"):
        command.main([str(folder), "--name", NAME, "--upload", "true"])
    assert hub.told == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "base/model.safetensors").write_bytes(b"cut"), "is not whole: base/model"),
        (lambda f: (f / "router/router.json").unlink(), "is not whole: router/router.json"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json, which is written last"),
        (lambda f: (f / "moe.yaml").unlink(), "holds no packed model"),
        (lambda f: (f / ".env").write_text("secret"), r"would be published, too: \.env; move it"),
        (shutil.rmtree, "is no folder: make one with `espnet-moe pack hub`"),
    ],
)
@pytest.mark.parametrize("send", ["true", "false"])
def test_what_is_not_a_whole_package(folder, hub, spoil, message, send):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        command.main([str(folder), "--name", NAME, "--upload", send])
    assert hub.told == []


def test_a_package_without_a_card(folder, hub):
    from espnet_moe.packing.contents import seal

    for name in ("README.md", "manifest.json"):
        (folder / name).unlink()
    seal(folder)
    with pytest.raises(UserError, match=r"has no model card \(README.md\)"):
        command.main([str(folder), "--name", NAME, "--upload", "true"])
    assert hub.told == []


@pytest.mark.parametrize("name", ["mixture", "a/b/c", "me/", "me/a b", "https://hub/me/x"])
def test_names_that_are_none(folder, hub, name):
    with pytest.raises(UserError, match="is none of the hub: it is <owner>/<model>"):
        command.main([str(folder), "--name", name])


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "Example:\n  python -m espnet_moe.bin.upload hub/mini" in capsys.readouterr().out
