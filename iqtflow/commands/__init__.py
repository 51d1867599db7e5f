"""Old name of `iqtflow.cli.commands`: scripts with ``python -m iqtflow.commands.NAME`` continue to work."""

from iqtflow.cli.commands import __path__  # noqa: F401
