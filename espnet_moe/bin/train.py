"""Train a router (stage 7), experts (stage 8), or both together (stage 9) with ESPnet's trainer.

Options are ESPnet's and the group "Mixture of experts"; `--config` reads them from YAML,
`--help_all` explains and `--print_config` shows them all. The folder --output_dir gets ESPnet's
files (config.yaml, checkpoint.pth, Nepoch.pth, valid.*.best.pth, tensorboard/, images/) and what
the best epoch has trained: router/ (--phase router), expert/ (--phase expert), or router/ and
expert_NAME/ of each (--phase joint).
"""

import sys
from collections.abc import Sequence

from espnet_moe.bin import cli
from espnet_moe.training_options import short_help


def main(argv: Sequence[str] | None = None) -> None:
    """Run the task. ESPnet is imported here: it takes a while, and help must not."""
    words = sys.argv[1:] if argv is None else argv
    if "-h" in words or "--help" in words:
        print(short_help(__doc__), end="")
        return
    from espnet_moe.exporting import export
    from espnet_moe.task import MoETask
    from espnet_moe.trainer import is_first_process

    parser = MoETask.get_parser()
    if "--help_all" in words:
        parser.print_help()
        return
    args = parser.parse_args(words)
    MoETask.main(args=args)
    if is_first_process(args):
        for folder in export(args):
            print(f"{folder.name.partition('_')[0]}: {folder}")


if __name__ == "__main__":
    cli.run(main)
