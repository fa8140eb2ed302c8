r"""Pack a trained mixture: everything into one archive, one expert alone, or a folder for the hub.

`model` writes a .zip with base, tokenizer, experts, router, options, results and licence, which
espnet_model_zoo unpacks and Speech2Text.from_pretrained loads; `expert` a .zip with one expert
(--name), which names its base by digest; `hub` a folder with a model card. What was packed is
loaded in a fresh process and must decode --sample as before, else nothing is written.

Example:
  python -m espnet_moe.bin.pack model --backbone whisper_mini --router exp/router/router \
    --experts hi=exp/expert_hi/expert it=exp/expert_it/expert --licence LICENSE --out model.zip
  python -m espnet_moe.bin.pack expert --backbone whisper_mini --name hi \
    --experts hi=exp/expert_hi/expert --licence LICENSE --out hi.zip
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.bin import cli


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options, for this command line and for `espnet-moe pack`."""
    parser.add_argument("kind", choices=("model", "expert", "hub"), help="what to make")
    parser.add_argument("--backbone", required=True, help="folder, file or hub name")
    parser.add_argument("--context", help="variable or padded; that of the experts if not given")
    parser.add_argument("--experts", nargs="+", default=[], help="NAME=FOLDER of each expert")
    parser.add_argument("--router", help="folder of the router, e.g. exp/router/router")
    parser.add_argument("--strategy", default="", help="how the model decides; hard if not given")
    parser.add_argument("--config", help="YAML of decoding options, e.g. conf/decode_greedy.yaml")
    parser.add_argument("--licence", type=Path, required=True, help="file with the terms of use")
    parser.add_argument("--results", type=Path, help="RESULTS.md of the experiment")
    parser.add_argument("--sample", type=Path, help="recording to decode; made tones if not given")
    parser.add_argument("--name", default="", help="expert: which one; hub: <owner>/<model>")
    parser.add_argument(
        "--licence_id", default="other", help="hub: its name of the licence, e.g. apache-2.0"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0 …")
    parser.add_argument("--out", type=Path, required=True, help=".zip, or a new folder (hub)")


def pack(args: argparse.Namespace) -> None:
    """Make what the options name."""
    from espnet_moe.decoding.loading import parse_experts, read_options
    from espnet_moe.errors import UserError
    from espnet_moe.packing.contents import Parts
    from espnet_moe.packing.packages import pack_expert, pack_hub, pack_model

    if not args.experts:
        raise UserError("--experts NAME=FOLDER … is needed: there is nothing to pack without one")
    system = "hard" if args.router else "oracle"
    parts = Parts(
        backbone=args.backbone,
        licence=args.licence,
        experts=parse_experts(system, args.experts, args.router),
        router=args.router,
        context=args.context,
        strategy=args.strategy,
        options=read_options(args.config),
        results=args.results,
    )
    if args.kind != "model" and not args.name:
        wanted = "one of --experts" if args.kind == "expert" else "<owner>/<model>"
        raise UserError(f"{args.kind} needs --name: {wanted}")
    if args.kind == "model":
        pack_model(parts, args.out, args.sample, args.device)
    elif args.kind == "expert":
        pack_expert(parts, args.name, args.out, args.sample, args.device)
    else:
        pack_hub(parts, args.out, args.name, args.licence_id, args.sample, args.device)
    print(f"written: {args.out}")


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = cli.parser(__doc__, "pack")
    add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Pack."""
    pack(get_parser().parse_args(argv))


if __name__ == "__main__":
    cli.run(main)
