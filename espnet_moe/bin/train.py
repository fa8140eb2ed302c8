"""Train experts with ESPnet's trainer (stage 8), and write the best one as an expert folder.

Options are ESPnet's and the group "Mixture of experts"; `--config` reads them from YAML, and
`--print_config` shows them all. The folder --output_dir gets ESPnet's files (config.yaml,
checkpoint.pth, Nepoch.pth, valid.*.best.pth, tensorboard/, images/) and expert/.
"""

from collections.abc import Sequence

from espnet_moe.bin import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Run the task. ESPnet is imported here: it takes a while."""
    from espnet_moe.exporting import export_experts
    from espnet_moe.task import MoETask

    args = MoETask.get_parser().parse_args(argv)
    MoETask.main(args=args)
    if args.dist_rank in (None, 0):
        for folder in export_experts(args):
            print(f"expert: {folder}")


if __name__ == "__main__":
    cli.run(main)
