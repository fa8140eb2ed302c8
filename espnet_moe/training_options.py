"""The options of ``espnet_moe.bin.train`` beyond ESPnet's, and a short help that names them.

Nothing here imports torch or ESPnet's tasks, which take half a minute: asking for the options must
not cost that.
"""

import argparse

from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import float_or_none, int_or_none, str2bool, str_or_none

# What other modules, which import torch, define; a test holds these against them.
PHASES = ("router", "expert", "joint", "finetune")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
BALANCES = ("languages", "experts", "none")
ROUTERS = ("oracle", "linear", "mlp", "cnn", "lstm", "attention")
AUGMENT = ("crop_share", "crop_seconds", "splice_share", "splice_seconds", "cross_fade")
JOINT = (
    *("gating", "k", "noise", "balance", "z", "entropy", "router"),
    *("usage_interval", "collapse_patience"),
)
#: Of ESPnet's some 150 options those that a recipe's training sets most often.
ESPNET = {
    "config": "YAML file of any options, the names without dashes",
    "output_dir": "folder of checkpoints, logs, and what was trained; an interrupted training goes "
    "on from it",
    "ngpu": "GPUs; 0 trains on the CPU",
    "multiprocessing_distributed": "true where there are several GPUs",
    "max_epoch": "epochs; one ends with a validation and a checkpoint",
    "num_iters_per_epoch": "batches of an epoch; default: once through the data",
    "accum_grad": "batches of an optimiser step",
    "batch_type": "sorted and unsorted count utterances (--batch_size), numel and length what they "
    "hold (--batch_bins)",
    "batch_size": "utterances of a batch",
    "batch_bins": "elements of a batch",
    "optim": "optimiser; its options are --optim_conf",
    "scheduler": "of the learning rate; its options are --scheduler_conf",
    "grad_clip": "largest norm of the gradient",
    "num_workers": "processes that load data",
    "seed": "of everything that is drawn",
    "use_tensorboard": "curves in output_dir/tensorboard",
    "use_wandb": "curves on Weights & Biases, too; WANDB_MODE=offline keeps them here",
}


def add_options(group: argparse._ArgumentGroup) -> None:
    """Add what ESPnet's parser lacks; classes to choose from come with the task."""
    group.add_argument("--phase", default="expert", help=f"what trains: {', '.join(PHASES)}")
    group.add_argument(
        "--experts", nargs="+", default=[], help="names of the experts, e.g. a language each"
    )
    group.add_argument(
        "--languages",
        nargs="+",
        default=[],
        help="codes in the order of the router's language logits (default: those of the data)",
    )
    group.add_argument("--train_dir", type=str_or_none, help="Kaldi data directory")
    group.add_argument("--valid_dir", type=str_or_none, help="Kaldi data directory")
    group.add_argument("--train_stats", type=str_or_none, help="folder of collect_shapes")
    group.add_argument("--valid_stats", type=str_or_none, help="folder of collect_shapes")
    group.add_argument(
        "--precision",
        default="fp32",
        choices=list(PRECISIONS),
        help="of the arithmetic; auto: bf16 where the processor or GPU has it, else fp32",
    )
    group.add_argument(
        "--gradient_checkpointing", type=str2bool, default=False, help="less memory, more time"
    )
    group.add_argument(
        "--speed_perturb", nargs="*", type=float, default=[], help="factors, e.g. 0.9 1.0 1.1"
    )
    group.add_argument(
        "--wer_interval",
        type=int_or_none,
        default=None,
        help="measure the greedy WER on the validation set every N validations",
    )
    group.add_argument(
        "--balance",
        type=str_or_none,
        default=None,
        help=f"repeat utterances so that these are equally frequent: {', '.join(BALANCES)} "
        "(default: languages; none in phase expert)",
    )
    group.add_argument(
        "--augment_conf",
        action=NestedDictAction,
        default={},
        help=f"phase router: {', '.join(AUGMENT)}",
    )
    group.add_argument(
        "--joint_conf", action=NestedDictAction, default={}, help=f"phase joint: {', '.join(JOINT)}"
    )
    group.add_argument(
        "--finetune_conf",
        action=NestedDictAction,
        default={},
        help="phase finetune: part=full or part=decoder",
    )
    group.add_argument(
        "--router_lr",
        type=float_or_none,
        default=None,
        help="phase joint: learning rate of the router (default: that of the experts)",
    )
    group.add_argument(
        "--init_router", type=str_or_none, help="phase joint: folder of a trained router"
    )
    group.add_argument(
        "--init_experts",
        nargs="*",
        default=[],
        metavar="NAME=FOLDER",
        help="phases expert and joint: trained experts to start from",
    )


def short_help(description: str | None) -> str:
    """These options and the most used of ESPnet's; ``--help_all`` has every one."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet_moe.bin.train",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --config FILE --output_dir DIR [options]",
        epilog="A *_conf takes KEY=VALUE, several times, or a mapping in the YAML file.",
    )
    parser.add_argument("--help_all", action="store_true", help="all of ESPnet's options, too")
    parser.add_argument("--print_config", action="store_true", help="all options as YAML")
    group = parser.add_argument_group("Mixture of experts")
    add_options(group)
    group.add_argument("--backbone_conf", help="path=FOLDER_OR_HUB_NAME, context=variable|padded")
    group.add_argument("--expert", help="kind of the experts: lora, or an extension's")
    group.add_argument("--expert_conf", help="of that kind: targets, where, first_layer, rank, ...")
    group.add_argument("--router", help=f"{', '.join(ROUTERS)}, or an extension's")
    group.add_argument("--router_conf", help="of that router: layer, level, hidden, dropout, ...")
    group.add_argument("--specaug", help="specaug: SpecAugment, or vtlp: of other voices")
    group.add_argument("--specaug_conf", help="of it: freq_mask_width_range, vtlp_range, ...")
    group.add_argument("--model_conf", help="label_smoothing=0.1; replay=3 of a router")
    trainer = parser.add_argument_group("ESPnet's trainer")
    for name, text in ESPNET.items():
        trainer.add_argument(f"--{name}", help=text)
    return parser.format_help()
