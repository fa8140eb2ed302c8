"""Train a router (stage 7), experts (stage 8), or both together (stage 9) with ESPnet's trainer.

Options are ESPnet's and the group "Mixture of experts"; `--config` reads them from YAML, and
`--print_config` shows them all. The folder --output_dir gets ESPnet's files (config.yaml,
checkpoint.pth, Nepoch.pth, valid.*.best.pth, tensorboard/, images/) and what the best epoch has
trained: router/ (--phase router), expert/ (--phase expert), or router/ and expert_NAME/ of each
(--phase joint).
"""

from collections.abc import Sequence

from espnet_moe.bin import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Run the task. ESPnet is imported here: it takes a while."""
    from espnet_moe.exporting import export
    from espnet_moe.task import MoETask

    args = MoETask.get_parser().parse_args(argv)
    MoETask.main(args=args)
    if args.dist_rank in (None, 0):
        for folder in export(args):
            print(f"{folder.name.partition('_')[0]}: {folder}")


if __name__ == "__main__":
    cli.run(main)
