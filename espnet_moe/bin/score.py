"""Score decoded sets: WER and CER with intervals, latency, memory.

Reads <exp>/<system>/<inference_tag>/<set>/text and <data>/<set>; writes score_wer/ and score_cer/
beside each text, <exp>/results.json, <exp>/RESULTS.md and <exp>/images/, and prints the summary.
Every system has decoded every test set, and every code-switch system every code-switched set. Rows
of other systems and sets stay in the results as long as their decode folder exists.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.bin import cli
from espnet_moe.files import remove_leftovers, write_manifest
from espnet_moe.report.figures import write_figures
from espnet_moe.report.mixture import collapse_lines, target_lines
from espnet_moe.report.results_md import write_results_md
from espnet_moe.report.summary import TERMINAL_LEGEND, terminal_table
from espnet_moe.scoring import ScoringOptions, score_systems
from espnet_moe.scoring.results import MANIFEST


def get_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.parser(__doc__, "score")
    parser.add_argument("--exp", type=Path, default=Path("exp"), help="experiment folder")
    parser.add_argument(
        "--data", type=Path, default=Path("dump/raw"), help="folder of the formatted data dirs"
    )
    parser.add_argument("--test_sets", nargs="+", required=True, help="data dirs in --data")
    parser.add_argument("--systems", nargs="+", required=True, help="system folders in --exp")
    parser.add_argument(
        "--codeswitch_sets",
        nargs="+",
        default=[],
        help="data dirs in --data of code-switched utterances, and of their parts",
    )
    parser.add_argument(
        "--codeswitch_systems",
        nargs="+",
        default=[],
        help="system folders in --exp that decoded --codeswitch_sets",
    )
    parser.add_argument("--inference_tag", required=True, help="decode folder of each system")
    parser.add_argument(
        "--baseline",
        default=ScoringOptions.baseline,
        help="system that the others are compared with",
    )
    parser.add_argument(
        "--resamples", type=int, default=ScoringOptions.resamples, help="bootstrap draws"
    )
    parser.add_argument("--seed", type=int, default=ScoringOptions.seed, help="bootstrap seed")
    parser.add_argument(
        "--use_wandb",
        type=cli.boolean,
        default=False,
        help="log the scores to wandb, offline unless WANDB_MODE says otherwise",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Score, write the results and print the summary table."""
    args = get_parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    remove_leftovers(args.exp)
    results = score_systems(
        ScoringOptions(
            exp=args.exp,
            data=args.data,
            systems=tuple(args.systems),
            test_sets=tuple(args.test_sets),
            codeswitch_systems=tuple(args.codeswitch_systems),
            codeswitch_sets=tuple(args.codeswitch_sets),
            inference_tag=args.inference_tag,
            baseline=args.baseline,
            resamples=args.resamples,
            seed=args.seed,
            command=shlex.join(["python", "-m", "espnet_moe.bin.score", *words]),
        )
    )
    figures = write_figures(args.exp, results)
    report = write_results_md(args.exp, results, figures)
    write_manifest(args.exp / MANIFEST, [args.exp / "results.json", report, *figures])
    if args.use_wandb:
        from espnet_moe.tracking import log_scores

        log_scores(args.exp, results)
    print(terminal_table(results).to_text() + TERMINAL_LEGEND.format(baseline=args.baseline))
    print(target_lines(results), *(f"{line}\n" for line in collapse_lines(results)), sep="", end="")
    print(f"written: {args.exp / 'results.json'} and {report}")


if __name__ == "__main__":
    cli.run(main)
