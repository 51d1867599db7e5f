"""``{command-help} iqtflow-simulate`` inserts the ``--help`` text of a command."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


class CommandHelp(Directive):
    """Directive for the help text of a command, as a block."""

    required_arguments = 1
    optional_arguments = 9
    has_content = False
    option_spec: ClassVar[dict] = {}

    def run(self) -> list[nodes.Node]:
        """Run the command's module in a process of its own; a command that fails stops the build."""
        name, *arguments = self.arguments
        module = (
            "iqtflow.cli.main"
            if name == "iqtflow"
            else f"iqtflow.cli.commands.{name.removeprefix('iqtflow-')}"
        )
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, "--help"],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "100"},
        )
        if done.returncode != 0:
            raise self.error(f"{name} --help: {done.stderr}")
        block = nodes.literal_block(done.stdout, done.stdout)
        block["language"] = "text"
        return [block]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive with Sphinx."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
