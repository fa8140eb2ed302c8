"""Load OWSM from a hub name, an espnet_model_zoo archive, or a folder."""

from __future__ import annotations

import logging
import shutil
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml

from espnet_moe.archives import unpacked
from espnet_moe.backbones.owsm import OwsmBackbone
from espnet_moe.backbones.owsm_tokens import OwsmTokens
from espnet_moe.errors import UserError

TRAIN_CONFIGS = ("s2t_train_config", "asr_train_config")  # of an archive's meta.yaml
# What ESPnet's own loading asks of a config, and OWSM has not.
UNUSED: dict[str, Any] = {
    "input_size": None,
    "init": None,
    "specaug": None,
    "specaug_conf": {},
    "preencoder": None,
    "preencoder_conf": {},
    "postencoder": None,
    "postencoder_conf": {},
}
MODEL_FILES = ("model.pth", "valid.acc.ave.pth", "valid.total_count.ave_5best.pth")


def is_owsm(path: str) -> bool:
    """Whether a backbone's path is a name, an archive or a folder of an OWSM model."""
    local = Path(path)
    if local.is_dir():
        return not (local / "config.json").is_file() and _has_config(local)
    if local.suffix in (".zip", ".pt"):
        return local.suffix == ".zip"
    return "owsm" in path.lower()


def _has_config(folder: Path) -> bool:
    return any(True for name in ("config.yaml", "meta.yaml") if (folder / name).is_file()) or any(
        folder.glob("exp/*/config.yaml")
    )


def load_owsm(path: str, context: str = "variable") -> OwsmBackbone:
    """Load model and tokens.

    Args:
        path: A folder with ``config.yaml`` and a model file (or an unpacked archive), a ``.zip``
            archive of espnet_model_zoo, or a hub name such as ``espnet/owsm_v3.1_ebf``.
        context: See :class:`OwsmBackbone`.

    Raises:
        UserError: Where nothing of these is there, or files are missing or broken.
    """
    config_file = find_config(path)
    config = read_owsm_config(config_file)
    weights_file = _model_file(config_file)
    seconds = float((config.get("preprocessor_conf") or {}).get("speech_length", 30.0))
    s2t = build_s2t(config).eval()
    backbone = OwsmBackbone(s2t, _tokens(config, config_file), context, seconds, config)
    try:
        state = torch.load(weights_file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise UserError(f"{weights_file} is not a checkpoint: {error}") from error
    state = state.get("module", state)  # DeepSpeed's checkpoints
    report = s2t.load_state_dict(state, strict=False)
    # What the config's statistics file gave is in the checkpoint too, or was left out of it.
    missing = [k for k in report.missing_keys if not k.startswith("normalize.")]
    if missing or report.unexpected_keys:
        parts = [f"lacks {len(missing)} weights, e.g. {missing[0]}"] if missing else []
        if extra := report.unexpected_keys:
            parts.append(f"has {len(extra)} that the config does not, e.g. {extra[0]}")
        raise UserError(f"{weights_file} does not fit {config_file}: it {' and '.join(parts)}")
    return backbone


def load_owsm_tokens(path: str) -> OwsmTokens:
    """Load the tokens alone; what :func:`load_owsm` takes, and its errors."""
    config_file = find_config(path)
    return _tokens(read_owsm_config(config_file), config_file)


def build_s2t(config: dict[str, Any]) -> Any:
    """ESPnet's model of a configuration, with fresh weights; no SpecAugment inside.

    The classes are built here by the names of a config, as ESPnet's ``S2TTask.build_model`` does,
    whose import brings every model of ESPnet and takes half a minute.

    Raises:
        UserError: For a configuration that is not like OWSM's.
    """
    from espnet2.asr.ctc import CTC
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
    from espnet2.asr.frontend.default import DefaultFrontend
    from espnet2.layers.global_mvn import GlobalMVN
    from espnet2.layers.utterance_mvn import UtteranceMVN
    from espnet2.s2t.espnet_model import ESPnetS2TModel
    from espnet2.torch_utils.initialize import initialize

    def conf(part: str) -> dict[str, Any]:
        return dict(config.get(f"{part}_conf") or {})

    known: dict[str, dict[Any, Any]] = {
        "frontend": {"default": DefaultFrontend},
        "normalize": {"global_mvn": GlobalMVN, "utterance_mvn": UtteranceMVN, None: None},
        "encoder": {"e_branchformer": EBranchformerEncoder},
        "decoder": {"transformer": TransformerDecoder},
        "model": {"espnet": ESPnetS2TModel},
    }
    defaults = {"model": "espnet", "normalize": None}
    problems: list[str] = []
    parts: dict[str, Any] = {}
    for part, choices in known.items():
        name = config.get(part, defaults.get(part, ""))
        if name not in choices:
            legal = " or ".join(str(c) for c in choices)
            problems.append(f"its {part} is '{name}', not {legal}")
        else:
            parts[part] = choices[name]
    problems += [f"it has a {p}" for p in ("preencoder", "postencoder") if config.get(p)]
    if problems:
        raise UserError(f"this S2T model is not like OWSM v3.1 or v4: {'; '.join(problems)}")
    tokens = list(config["token_list"])
    try:
        frontend = parts["frontend"](**conf("frontend"))
        normalize = parts["normalize"](**conf("normalize")) if parts["normalize"] else None
        encoder = parts["encoder"](input_size=frontend.output_size(), **conf("encoder"))
        width = encoder.output_size()
        decoder = parts["decoder"](
            vocab_size=len(tokens), encoder_output_size=width, **conf("decoder")
        )
        model = parts["model"](
            vocab_size=len(tokens),
            token_list=tokens,
            frontend=frontend,
            specaug=None,
            normalize=normalize,
            preencoder=None,
            encoder=encoder,
            postencoder=None,
            decoder=decoder,
            ctc=CTC(odim=len(tokens), encoder_output_size=width, **conf("ctc")),
            **conf("model"),
        )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the config is not one of an ESPnet S2T model: {error}") from error
    if config.get("init"):
        initialize(model, config["init"])
    return model


# -- files ----------------------------------------------------------------------------------------


@cache
def find_config(path: str) -> Path:
    """The ``config.yaml`` of a folder, an archive (unpacked to a cache), or a hub name."""
    local = Path(path)
    if local.is_file():
        if not zipfile.is_zipfile(local):
            raise UserError(f"{path} is no archive: a packed OWSM model is a .zip file")
        return find_config(str(unpacked(local)))
    if local.is_dir():
        if (local / "meta.yaml").is_file():
            meta = yaml.safe_load((local / "meta.yaml").read_text(encoding="utf-8")) or {}
            files = meta.get("yaml_files") or {}
            for key in TRAIN_CONFIGS:
                if key in files and (local / files[key]).is_file():
                    return local / files[key]
        found = [local / "config.yaml"] if (local / "config.yaml").is_file() else []
        found = found or sorted(local.glob("exp/*/config.yaml"))
        if len(found) == 1:
            return found[0]
        raise UserError(
            f"{path} has {len(found) or 'no'} config.yaml: an OWSM folder holds config.yaml and "
            "the model file, or is an unpacked archive of espnet_model_zoo"
        )
    nowhere = path.startswith((".", "/", "~")) or path.count("/") != 1
    if nowhere or local.suffix == ".zip" or local.parent.is_dir():
        raise UserError(
            f"backbone '{path}' does not exist: give an OWSM folder, a .zip archive, or a hub name "
            "such as espnet/owsm_v3.1_ebf"
        )
    return _downloaded(path)


def _downloader() -> Any:
    from espnet_model_zoo.downloader import ModelDownloader

    return ModelDownloader()


def _downloaded(name: str) -> Path:
    """Let espnet_model_zoo fetch a model, and unpack it into its cache."""
    try:
        files = _downloader().download_and_unpack(name)
    except Exception as error:  # the hub's, requests', zipfile's own kinds
        raise UserError(f"backbone '{name}' could not be fetched or unpacked: {error}") from error
    for key in TRAIN_CONFIGS:
        if key in files:
            return Path(files[key])
    raise UserError(f"backbone '{name}' holds no train_config: it is no ESPnet S2T model")


def read_owsm_config(path: Path) -> dict[str, Any]:
    """The configuration, with the paths in it found beside it or above."""
    try:
        # 50,000 tokens: libyaml's parser takes a tenth of the time.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        config = yaml.load(path.read_text(encoding="utf-8"), loader)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(config, dict) or "encoder_conf" not in config or "token_list" not in config:
        raise UserError(f"{path} is no config of an ESPnet S2T model (encoder_conf, token_list)")
    places = [path.parent, *path.parent.parents][:4]

    def located(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        for place in places:
            if (place / value).is_file():
                return str((place / value).resolve())
        # Configs name files by their place in the recipe; a copied folder holds them flat.
        flat = path.parent / Path(value).name
        return str(flat.resolve()) if flat.is_file() else value

    config["bpemodel"] = located(config.get("bpemodel"))
    if isinstance(token_list := located(config["token_list"]), str):
        if not Path(token_list).is_file():
            raise UserError(f"{path} names a token_list that is not there: {token_list}")
        token_list = Path(token_list).read_text(encoding="utf-8").splitlines()
    config["token_list"] = token_list
    normalize = config.get("normalize_conf") or {}
    if "stats_file" in normalize:
        config["normalize_conf"] = {**normalize, "stats_file": located(normalize["stats_file"])}
    wanted = [config["bpemodel"], (config.get("normalize_conf") or {}).get("stats_file")]
    if lost := [w for w in wanted if isinstance(w, str) and not Path(w).is_file()]:
        raise UserError(f"{path} names files that are not there: {', '.join(lost)}")
    return config


def _model_file(config_file: Path) -> Path:
    folder = config_file.parent
    found = [folder / name for name in MODEL_FILES if (folder / name).is_file()]
    found = found or sorted(folder.glob("*.pth"))
    if len(found) != 1:
        raise UserError(
            f"{folder} has {len(found) or 'no'} model files (*.pth), one is wanted: "
            f"keep the one to use, or name it {MODEL_FILES[0]}"
        )
    return found[0]


def _tokens(config: dict[str, Any], config_file: Path) -> OwsmTokens:
    if not isinstance(config.get("bpemodel"), str):
        raise UserError(f"{config_file} names no bpemodel: OWSM's text is SentencePiece tokens")
    try:
        bpe = sentencepiece.SentencePieceProcessor(model_file=config["bpemodel"])
    except (OSError, RuntimeError) as error:
        raise UserError(f"{config['bpemodel']} is no SentencePiece model: {error}") from error
    model, preprocessor = config.get("model_conf") or {}, config.get("preprocessor_conf") or {}
    symbols = {
        role: value
        for role, value in {
            "blank": model.get("sym_blank"),
            "sos": model.get("sym_sos"),
            "eos": model.get("sym_eos"),
            "sop": model.get("sym_sop"),
            "na": model.get("sym_na"),
            "notime": preprocessor.get("notime_symbol"),
        }.items()
        if value
    }
    return OwsmTokens(config["token_list"], bpe, symbols)


def save_owsm(backbone: OwsmBackbone, folder: Path) -> None:
    """Write ``config.yaml``, ``model.pth``, ``bpe.model`` and ``feats_stats.npz``, paths relative.

    The statistics file is the pretrained model's own, copied; one that is there stays as it is.
    """
    if backbone.espnet_config is None:
        raise UserError("this OWSM model was built without a config: it cannot be written")
    folder.mkdir(parents=True, exist_ok=True)
    backbone.tokens.save_pretrained(folder)
    config = {**UNUSED, **backbone.espnet_config}
    config |= {"bpemodel": "bpe.model", "token_list": "tokens.txt"}
    normalize = config.get("normalize_conf") or {}
    if "stats_file" in normalize:
        target = folder / "feats_stats.npz"
        if not target.exists():
            shutil.copyfile(normalize["stats_file"], target)
        else:
            logging.info("%s stays as it is", target)
        config["normalize_conf"] = {**normalize, "stats_file": target.name}
    with open(folder / "config.yaml", "w", encoding="utf-8") as file:
        yaml.safe_dump(config, file, sort_keys=False, allow_unicode=True)
    torch.save(backbone.s2t.state_dict(), folder / "model.pth")
