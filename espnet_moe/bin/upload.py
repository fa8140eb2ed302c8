r"""Upload a folder that `espnet-moe pack hub` has made to the hub.

The folder is checked against its manifest first: a file that is missing, changed or not of the
package is an error. By default nothing is sent: the files are listed with their sizes, and where
they would go. `--upload true` sends them as one commit, with the token of HF_TOKEN or of
`hf auth login`.

Example:
  python -m espnet_moe.bin.upload hub/mini --name owner/whisper-mini-indic
  HF_TOKEN=hf_… python -m espnet_moe.bin.upload hub/mini --name owner/whisper-mini-indic \
    --private true --upload true
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.bin import cli


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = cli.parser(__doc__, "upload")
    parser.add_argument("folder", type=Path, help="what `espnet-moe pack hub` has written")
    parser.add_argument("--name", required=True, help="<owner>/<model>, as when it was packed")
    parser.add_argument(
        "--private", type=cli.boolean, default=False, help="make a new model private"
    )
    parser.add_argument(
        "--upload", type=cli.boolean, default=False, help="send it; else tell what would be sent"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Check, list, and send if asked to."""
    args = get_parser().parse_args(argv)
    from espnet_moe.packing.upload import address, read_hub_folder, require_name, upload

    require_name(args.name)
    content = read_hub_folder(args.folder)
    for name, size in content.sizes.items():
        print(f"{_readable(size):>10}  {name}")
    print(f"{_readable(sum(content.sizes.values())):>10}  in {len(content.sizes)} files")
    if not args.upload:
        kind = "private" if args.private else "public"
        print(f"would go to {address(args.name)} ({kind} if new); --upload true sends it")
        return
    print(f"uploaded: {upload(content, args.name, args.private)}")


def _readable(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


if __name__ == "__main__":
    cli.run(main)
