"""What the interfaces share: inputs made from the table of settings, and commands in their own process."""

from __future__ import annotations

import os
import shlex
from typing import Any

from nipype.interfaces.base import CommandLine, CommandLineInputSpec, TraitedSpec, traits
from nipype.interfaces.base.traits_extension import BasePath, Undefined, isdefined

from iqtflow.config import SETTINGS
from iqtflow.utils.environment import command_line


def setting_trait(section: str, name: str, **changes: Any) -> Any:
    """Return the input that stands for a setting: its type, default, choices, option and description.

    Parameters
    ----------
    section, name
        The setting in `iqtflow.config.SETTINGS`.
    changes
        Metadata of the trait in place of those that follow from the setting. ``usedefault=False`` leaves the
        input undefined, and thereby out of the cache key; ``choices`` are values in place of the setting's.
    """
    item = SETTINGS[section][name]
    default = item.default
    choices = changes.pop("choices", item.choices)
    form = " %s" if item.words else {int: " %d", float: " %g", str: " %s", bool: ""}[item.kind]
    given = {
        "usedefault": default is not None and not item.words,
        "argstr": item.command_option + form * (item.count or 1),
        "desc": item.help,
        **changes,
    }
    if item.words:
        number = traits.Float if item.kind is float else traits.Int
        return traits.Either(traits.Enum(*item.words), number, **given)
    if item.many:
        return traits.Tuple(default, **given)
    if item.kind is str and choices:
        return traits.Enum(default, [default, *(choice for choice in choices if choice != default)], **given)
    kind = {int: traits.Int, float: traits.Float, str: traits.Str, bool: traits.Bool}[item.kind]
    return kind(**given) if default is None or not given["usedefault"] else kind(default, **given)


#: Input of commands that look for the brain.
SKULL_STRIPPED = traits.Enum(
    "auto",
    "yes",
    "no",
    usedefault=True,
    argstr="--skull-stripped %s",
    desc="whether the image shows the brain only",
)


class ChildCommandInputSpec(CommandLineInputSpec):
    """Inputs that say how a command runs, not what it computes; none of them enters the cache key."""

    num_threads = setting_trait("run", "omp_nthreads", argstr=None, nohash=True)
    overwrite = traits.Bool(
        False,
        usedefault=True,
        nohash=True,
        argstr="--overwrite",
        desc="replace files that this interface did not write; its own files are replaced in any case",
    )


class NetworkInputSpec(ChildCommandInputSpec):
    """Inputs of commands that run networks."""

    num_threads = setting_trait("run", "omp_nthreads", nohash=True)
    device = setting_trait(
        "run", "device", choices=("cpu", "cuda"), nohash=True, desc="where the network runs"
    )
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, desc="this node takes one of the scheduler's GPU slots"
    )


class ChildCommand(CommandLine):
    """A command of this package in a process of its own.

    torch and ANTs are never imported in the process that runs the graph. If a child process dies, nipype
    reports an error; if a worker process of nipype dies, its scheduler waits for ever.
    """

    #: Name of the module under ``iqtflow.cli.commands``.
    module: str
    #: Outputs that the command may leave out.
    optional: tuple[str, ...] = ()
    output_spec = TraitedSpec

    def __init__(self, **inputs) -> None:
        super().__init__(
            command=shlex.join(command_line(f"iqtflow.cli.commands.{self.module}")),
            terminal_output="file_split",
            **inputs,
        )

    def _format_arg(self, name, trait_spec, value):
        # The command passes through a shell; nipype quotes single paths only.
        if isinstance(value, list):
            value = [shlex.quote(item) if isinstance(item, str) else item for item in value]
        elif isinstance(value, str) and not trait_spec.is_trait_type(BasePath):
            value = shlex.quote(value)
        return super()._format_arg(name, trait_spec, value)

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        threads = str(self.inputs.num_threads)
        for name in (
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "MKL_NUM_THREADS",
            "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
        ):
            runtime.environ[name] = threads
        runtime = super()._run_interface(runtime, correct_return_codes)
        # nipype would go on to look for outputs, and report "file not found" in place of the failure.
        if runtime.returncode not in correct_return_codes:
            self.raise_exception(runtime)
        return runtime

    def _list_outputs(self):
        # An output is in the folder of the node, under the name that the input of the same name gives it.
        named = {name: getattr(self.inputs, name, Undefined) for name in self.output_spec().get()}
        files = {name: os.path.abspath(file) for name, file in named.items() if isdefined(file)}
        return {n: file for n, file in files.items() if n not in self.optional or os.path.exists(file)}
