r"""Write embeddings of the frozen encoder for clustering (stage 5).

Each set goes to <out>/<set>/embeddings.{ark,scp,json}.

Example:
  python -m espnet_moe.bin.embed --backbone whisper_mini --layer 2 --pooling mean_std \
    --data dump/raw/train_hi dump/raw/train_it --out exp/embeddings
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.bin import cli
from espnet_moe.config import ConfigError


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = cli.parser(__doc__, "embed")
    parser.add_argument("--backbone", required=True, help="folder, file or hub name")
    parser.add_argument("--context", default="variable", help="encoder input: variable or padded")
    parser.add_argument("--layer", type=int, default=0, help="encoder layer the router reads, 0..n")
    parser.add_argument("--pooling", default="mean_std", help="mean or mean_std")
    parser.add_argument("--data", nargs="+", required=True, help="formatted data directories")
    parser.add_argument("--out", required=True, help="folder that gets one folder a set")
    parser.add_argument("--batch_size", type=int, default=16, help="utterances encoded at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0 …")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Load the backbone once, embed every set."""
    args = get_parser().parse_args(argv)
    names = [Path(folder).name for folder in args.data]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--data names sets of the same name: {', '.join(double)}")
    # After parsing, so that --help and a mistyped option answer at once.
    from espnet_moe.backbones.loading import load_backbone
    from espnet_moe.clustering.embeddings import extract_embeddings, require_data

    backbone = load_backbone(args.backbone, args.context)
    for folder in args.data:
        require_data(folder, backbone.max_seconds)
    for name, folder in zip(names, args.data, strict=True):
        out = Path(args.out) / name
        extract_embeddings(
            backbone, args.layer, args.pooling, folder, out, args.batch_size, args.device
        )
        logging.info("embeddings of layer %d (%s): %s", args.layer, args.pooling, out)


if __name__ == "__main__":
    cli.run(main)
