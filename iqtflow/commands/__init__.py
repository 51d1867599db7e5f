"""``python -m iqtflow.commands.NAME`` runs `iqtflow.cli.commands.NAME`: the address that scripts know."""

from iqtflow.cli.commands import __path__  # noqa: F401
