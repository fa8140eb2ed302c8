r"""Decode test sets with one system (stage 10).

The system `baseline` is the backbone alone; `oracle` gives every utterance the expert of its true
language (or those of --utt2experts). In all others a router decides: `hard`, `soft`, `threshold`,
`topk`, `hierarchical` and `fixed` an utterance, `frame` a frame; `segment` cuts the utterance where
the language changes (with an utterance-level router: at pauses only). Their settings stand
under `routing:` in --config. Batches mix languages and sets; each job writes its share under
<out>/<set>/logdir/output.JOB/.

Example:
  python -m espnet_moe.bin.decode --backbone whisper_mini --system oracle \
    --experts hi=exp/expert_hi/expert it=exp/expert_it/expert \
    --data dump/raw/test_hi dump/raw/test_it --out exp/oracle/decode_greedy
  python -m espnet_moe.bin.decode --backbone whisper_mini --system hard \
    --router exp/router/router --experts hi=exp/expert_hi/expert it=exp/expert_it/expert \
    --data dump/raw/test_hi dump/raw/test_it --out exp/hard/decode_greedy
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from espnet_moe.bin import cli


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = cli.parser(__doc__, "decode")
    parser.add_argument("--backbone", required=True, help="folder, file or hub name")
    parser.add_argument("--context", default="variable", help="encoder input: variable or padded")
    parser.add_argument(
        "--system",
        default="baseline",
        help="baseline, oracle, hard, soft, threshold, topk, hierarchical, fixed, frame or segment",
    )
    parser.add_argument("--experts", nargs="+", default=[], help="NAME=FOLDER of each expert")
    parser.add_argument("--router", help="folder of the router, e.g. exp/router/router")
    parser.add_argument(
        "--utt2experts", help="oracle for experts that are no languages: utt_id expert:weight …"
    )
    parser.add_argument("--data", nargs="+", required=True, help="data directories")
    parser.add_argument("--out", required=True, help="exp/<system>/<inference_tag>")
    parser.add_argument("--config", help="YAML of decoding options, e.g. conf/decode_greedy.yaml")
    parser.add_argument("--job", type=int, default=1, help="this job, from 1")
    parser.add_argument("--num_jobs", type=int, default=1, help="jobs that share the sets")
    parser.add_argument(
        "--place",
        metavar="N/ALL",
        help="of this job among all that write to --out, where calls with several bases do "
        "(default: JOB/NUM_JOBS)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0 …")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Load, decode, write."""
    args = get_parser().parse_args(argv)
    # After parsing, so that --help and a mistyped option answer at once.
    from espnet_moe.backbones.loading import read_finetuned
    from espnet_moe.data.memberships import read_utt2experts
    from espnet_moe.decoding.loading import load_decoder, parse_experts
    from espnet_moe.decoding.sets import Share, decode_sets

    experts = parse_experts(args.system, args.experts, args.router, args.utt2experts)
    memberships = None
    if args.utt2experts is not None:
        memberships = read_utt2experts(args.utt2experts, list(experts))
    decoder = load_decoder(
        args.backbone,
        args.context,
        experts,
        args.config,
        args.device,
        args.system,
        args.router,
    )
    chosen_by_language = set(experts) <= set(decoder.backbone.tokens.languages)
    facts = {
        "command": f"python -m espnet_moe.bin.decode {shlex.join(argv or sys.argv[1:])}",
        "system": args.system,
        "strategy": args.system,
        "backbone": args.backbone,
        "experts": experts,
        "experts_by": "language" if chosen_by_language else "cluster",
        "router": args.router,
    }
    if finetuned := read_finetuned(args.backbone):
        facts["trainable_params"] = finetuned["trained_params"]
    share = Share.of(args.job, args.num_jobs, args.place)
    decode_sets(decoder, args.data, args.out, facts, share, memberships)


if __name__ == "__main__":
    cli.run(main)
