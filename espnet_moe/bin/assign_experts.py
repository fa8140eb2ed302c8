r"""Give every utterance to experts, by language or by clusters of its embedding (stage 6).

Writes <out>/experts.json (last), <out>/utt2experts, the sets <out>/data/{train,dev}_{<expert>,
joint,router} and their <out>/stats. How many experts there are follows from the result.

Example:
  python -m espnet_moe.bin.assign_experts --experts_by kmeans --config conf/assign_kmeans.yaml \
    --train dump/raw/train_hi dump/raw/train_it --dev dump/raw/dev_hi dump/raw/dev_it \
    --embeddings exp/embeddings --out exp/assign_kmeans
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.bin import cli
from espnet_moe.config import read_config


def get_parser() -> argparse.ArgumentParser:
    """Make the parser of this command line."""
    parser = cli.parser(__doc__, "assign_experts")
    parser.add_argument(
        "--experts_by",
        default="language",
        help="language, kmeans, gmm, agglomerative, spectral or hdbscan",
    )
    parser.add_argument("--config", help="YAML of options, e.g. conf/assign_kmeans.yaml")
    for name, needed in {"train": True, "dev": True, "test": False}.items():
        parser.add_argument(
            f"--{name}", nargs="+", default=[], required=needed, metavar="DIR", help="data dirs"
        )
    parser.add_argument("--embeddings", metavar="DIR", help="holds <set name>/ of every set")
    parser.add_argument("--backbone_digest", help="that embeddings are to be of")
    parser.add_argument("--layer", type=int, help="encoder layer that embeddings are to be of")
    parser.add_argument("--out", required=True, metavar="DIR", help="exp/assign_<experts_by>")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(argv)
    from espnet_moe.clustering.assigning import AssignRequest, assign_experts

    request = AssignRequest(
        experts_by=args.experts_by,
        train=args.train,
        dev=args.dev,
        test=args.test,
        embeddings=args.embeddings,
        base_digest=args.backbone_digest,
        layer=args.layer,
    )
    made = assign_experts(request, read_config(args.config), args.out)
    print(f"{Path(args.out) / 'experts.json'}: {len(made['experts'])} experts: ", end="")
    print(" ".join(f"{name} ({made['sizes'][name]['utterances']})" for name in made["experts"]))


if __name__ == "__main__":
    cli.run(main)
