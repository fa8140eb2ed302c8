"""Router networks and expert kinds from outside of the package.

A module that puts its own into ``NETWORKS`` or ``KINDS`` when it is imported is named in the
environment, ``ESPNET_MOE_EXTENSIONS=my_router,my_experts``. So every process knows it that trains,
decodes or packs, through recipes and SLURM, too. What a file says is never imported.
"""

import os
from importlib import import_module

from espnet_moe.errors import UserError

VARIABLE = "ESPNET_MOE_EXTENSIONS"


def load() -> None:
    """Import the modules that the environment names, each once.

    Raises:
        UserError: For one that cannot be imported.
    """
    for name in os.environ.get(VARIABLE, "").replace(",", " ").split():
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(
                f"{VARIABLE} names {name}, which cannot be imported ({error}): put its folder on "
                "PYTHONPATH"
            ) from error
