"""The short help of the training command tells the truth, and costs no import of torch."""

import re
import subprocess
import sys
from dataclasses import fields

from espnet_moe import phases, training_data, training_options
from espnet_moe.model import AugmentOptions, JointOptions, trained
from espnet_moe.routing.networks import NETWORKS
from espnet_moe.routing.oracle import OracleRouter
from espnet_moe.task import MoETask, router_choices


def test_names_are_those_of_the_modules_that_define_them():
    assert list(training_options.PHASES) == list(phases.PHASES)
    assert list(training_options.PRECISIONS) == ["auto", *trained.PRECISIONS]
    assert training_options.BALANCES == training_data.BALANCES
    assert set(training_options.ROUTERS) == {"oracle", *NETWORKS}
    assert router_choices.get_class("oracle") is OracleRouter
    for names, options in (
        (training_options.AUGMENT, AugmentOptions),
        (training_options.JOINT, JointOptions),
    ):
        assert list(names) == [field.name for field in fields(options)]


def test_every_option_of_the_short_help_is_one_of_the_parser():
    told = set(re.findall(r"--\w+", training_options.short_help("Train.")))
    legal = set(MoETask.get_parser()._option_string_actions)
    assert len(told) > 40
    assert told - legal == {"--help_all"}


def test_the_short_help_imports_no_torch():
    script = (
        "import sys\n"
        "from espnet_moe.bin import train\n"
        "train.main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\n"
    )
    for word in ("--help", "-h"):
        done = subprocess.run(
            [sys.executable, "-c", script, "--config", "a.yaml", word],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "--joint_conf" in done.stdout and "--print_config" in done.stdout


def test_the_long_help_has_espnets_options_too(capsys):
    from espnet_moe.bin import train

    train.main(["--help_all"])
    told = capsys.readouterr().out
    for option in ("--joint_conf", "--router_conf", "--dist_backend", "--keep_nbest_models"):
        assert option in told
