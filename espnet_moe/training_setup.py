"""What a phase needs besides its data: checked and completed before a model is built."""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from espnet_moe import phases
from espnet_moe.config import build_options
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_files import read_manifest
from espnet_moe.model import AugmentOptions, FinetuneOptions, JointOptions
from espnet_moe.routing.router_files import read_router_manifest
from espnet_moe.training_data import BALANCED_TYPES, BALANCES, Labels, log_balance, read_labels

# Options that a phase would silently not follow.
_NO_EFFECT = {
    "router": (
        *("expert_conf", "init_router", "init_experts", "router_lr", "joint_conf"),
        *("wer_interval", "gradient_checkpointing"),
    ),
    "expert": ("init_router", "router_lr", "joint_conf", "augment_conf"),
    "joint": ("augment_conf",),
    "finetune": (
        *("experts", "expert_conf", "init_router", "init_experts", "router_lr", "joint_conf"),
        "augment_conf",
    ),
}
_DEFAULT_BALANCE = dict.fromkeys(phases.PHASES, "none") | dict.fromkeys(phases.ROUTED, "languages")


def complete(args: argparse.Namespace, readable: bool) -> list[str]:
    """Complete the options of a phase: languages, balance, router and experts to start from.

    Args:
        args: The command line; ``languages``, ``experts`` (their order), ``balance``, ``router``,
            ``router_conf`` and ``init_experts`` (as a mapping) are filled in.
        readable: Whether the data directories are there.

    Returns:
        What is wrong.
    """
    problems = [
        f"--{key} has no effect in phase {args.phase}: leave it out"
        for key in _NO_EFFECT[args.phase]
        if getattr(args, key)
    ]
    if args.phase == "finetune":
        problems += _said(
            lambda: build_options(FinetuneOptions, args.finetune_conf, "finetune_conf")
        )
    elif args.finetune_conf:
        problems.append(f"--finetune_conf has no effect in phase {args.phase}: leave it out")
    if args.router_lr is not None and not args.router_lr > 0:
        problems.append(f"--router_lr is positive, not {args.router_lr}")
    problems += _start(args) + _router_problems(args)
    problems += _balance_problems(args)
    labels: dict[str, Labels] = {}
    if readable:
        experts = args.experts if args.phase in phases.ROUTED or args.balance == "experts" else []
        for split in ("train", "valid"):
            problems += _said(lambda split=split: labels.setdefault(  # type: ignore[misc]
                split, read_labels(getattr(args, f"{split}_dir"), experts)
            ))  # fmt: skip
    if len(labels) == 2:
        problems += _label_problems(args, labels)
    return problems


def _said(action: Callable[[], Any]) -> list[str]:
    """The message of the mistake that an action finds, if any."""
    try:
        action()
    except UserError as error:
        return [str(error)]
    return []


# -- where a training starts ----------------------------------------------------------------------


def _start(args: argparse.Namespace) -> list[str]:
    """Read what ``--init_router`` and ``--init_experts`` say of themselves, and take it over."""
    problems = []
    given = dict.fromkeys(args.experts)
    if len(given) < len(args.experts):
        problems.append(f"--experts names one twice: {' '.join(args.experts)}")
    if args.init_experts:
        pairs = [str(part).partition("=") for part in _as_words(args.init_experts)]
        args.init_experts = {name: folder for name, _, folder in pairs}
        if wrong := [name for name, equals, folder in pairs if not (equals and folder)]:
            problems.append(f"--init_experts {' '.join(wrong)}: write NAME=FOLDER")
        elif set(args.init_experts) != set(args.experts) or len(pairs) > len(args.init_experts):
            problems.append(
                f"--init_experts starts {' '.join(n for n, _, _ in pairs)}, --experts names "
                f"{' '.join(args.experts)}: start all experts, each once, or none"
            )
        else:
            problems += _expert_problems(args)
    if args.init_router:
        problems += _said(lambda: _adopt_router(args))
    elif not problems and args.languages and set(args.languages) == set(args.experts):
        args.languages = list(args.experts)  # one order, so that one head serves both
    return problems


def _as_words(pairs: Sequence[str] | Mapping[str, str]) -> list[str]:
    if isinstance(pairs, Mapping):  # of a configuration file
        return [f"{name}={folder}" for name, folder in pairs.items()]
    return list(pairs)


def _expert_problems(args: argparse.Namespace) -> list[str]:
    """Where the experts to start from contradict ``expert_conf``."""
    problems = []
    for name, folder in args.init_experts.items():
        try:
            options = read_manifest(folder)["options"]
        except UserError as error:
            problems.append(str(error))
            continue
        problems += [
            f"expert_conf: {key} is {value}, but expert '{name}' ({folder}) has {options[key]}: "
            "leave it out"
            for key, value in args.expert_conf.items()
            if key in options and _plain(options[key]) != _plain(value)
        ]
    return problems


def _adopt_router(args: argparse.Namespace) -> None:
    """Take network, options, experts and languages over from ``--init_router``."""
    manifest = read_router_manifest(args.init_router)
    problems = []
    if args.router not in ("oracle", manifest["network"]):
        problems.append(f"it is of the kind {manifest['network']}, not {args.router}")
    problems += [
        f"router_conf: its {key} is {manifest['options'].get(key)}, not {value}"
        for key, value in args.router_conf.items()
        if _plain(manifest["options"].get(key)) != _plain(value)
    ]
    for key in ("experts", "languages"):
        given, own = getattr(args, key), list(manifest[key])
        if given and set(given) != set(own):
            problems.append(f"it knows the {key} {' '.join(own)}, not {' '.join(given)}")
        setattr(args, key, own)
    if problems:
        raise UserError(f"--init_router {args.init_router}: {'; '.join(problems)}")
    args.router = manifest["network"]
    args.router_conf = {k: _plain(v) for k, v in manifest["options"].items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# -- what is asked of a phase ---------------------------------------------------------------------


def _router_problems(args: argparse.Namespace) -> list[str]:
    if args.phase not in phases.ROUTED:
        if args.router == "oracle":
            return []
        return [f"phase {args.phase} has no router: leave --router {args.router} out"]
    problems = []
    if args.router == "oracle":
        problems.append(f"phase {args.phase} needs a router to train: --router linear, mlp, …")
    if args.phase == "joint":
        problems += _said(
            lambda: build_options(JointOptions, args.joint_conf, "joint_conf").check(args.experts)
        )
    else:
        problems += _said(lambda: build_options(AugmentOptions, args.augment_conf, "augment_conf"))
    return problems


def _balance_problems(args: argparse.Namespace) -> list[str]:
    if args.balance is None:
        args.balance = _DEFAULT_BALANCE[args.phase]
    if args.balance not in BALANCES:
        legal = ", ".join(BALANCES)
        return [f"--balance {args.balance} is unknown: choose one of {legal}"]
    problems = []
    if args.balance != "none" and args.batch_type not in BALANCED_TYPES:
        problems.append(
            f"--balance {args.balance} makes batches of --batch_size utterances: "
            f"use --batch_type {' or '.join(BALANCED_TYPES)}, or --balance none"
        )
    if args.balance != "none" and args.iterator_type != "sequence":
        problems.append(f"--balance {args.balance} needs --iterator_type sequence")
    return problems


def _label_problems(args: argparse.Namespace, labels: Mapping[str, Labels]) -> list[str]:
    """Where the data do not fit the experts and languages, which are filled in if need be."""
    train = labels["train"]
    if not args.languages and args.phase in phases.ROUTED:
        found = set(train.languages.values())
        args.languages = list(args.experts) if found == set(args.experts) else sorted(found)
    problems = []
    for split, known in labels.items() if args.languages else ():
        if strange := sorted(set(known.languages.values()) - set(args.languages)):
            problems.append(
                f"--{split}_dir has the language(s) {' '.join(strange)}, "
                f"which --languages does not name: {' '.join(args.languages)}"
            )
    if args.balance != "none":
        classes = train.classes(args.balance, args.experts)
        if not classes:
            problems.append("--balance experts needs utt2experts in --train_dir")
        log_balance(classes, args.balance)
    if args.phase not in phases.ROUTED:
        return problems
    if empty := sorted(set(args.languages) - set(train.languages.values())):
        problems.append(f"--train_dir has no utterance of the language(s) {' '.join(empty)}")
    return problems + _membership_problems(args, labels)


def _membership_problems(args: argparse.Namespace, labels: Mapping[str, Labels]) -> list[str]:
    """Where it is not known which expert an utterance belongs to."""
    problems = []
    for split, known in labels.items():
        codes = set(known.languages.values())
        if not known.memberships and (codes & set(args.experts)):
            missing = " ".join(sorted(codes - set(args.experts)))
            problems.append(f"no expert for language(s) {missing} of --{split}_dir")
        elif not known.memberships and args.phase == "router":
            problems.append(
                f"the experts {' '.join(args.experts)} are no languages: --{split}_dir needs "
                "utt2experts (stage 6)"
            )
    rows = labels["train"].memberships.values()
    if rows and not problems:
        total = [sum(column) for column in zip(*rows, strict=True)]
        if idle := [e for e, share in zip(args.experts, total, strict=True) if share == 0]:
            problems.append(f"no utterance of --train_dir belongs to expert(s) {' '.join(idle)}")
    if problems:
        return problems
    logging.info("languages: %s; experts: %s", " ".join(args.languages), " ".join(args.experts))
    return []
