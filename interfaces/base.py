"""What the interfaces share: running one of our own commands as a child process."""

from __future__ import annotations

import shlex

from nipype.interfaces.base import CommandLine, CommandLineInputSpec, traits
from nipype.interfaces.base.traits_extension import BasePath

from iqtflow.utils.environment import command_line


class ChildCommandInputSpec(CommandLineInputSpec):
    """Inputs that say how a command runs, not what it computes; none of them enters the cache key."""

    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads that the child process may use")
    overwrite = traits.Bool(
        False,
        usedefault=True,
        nohash=True,
        argstr="--overwrite",
        desc="replace files that this interface did not write; those that it wrote it replaces in any case",
    )


class ChildCommand(CommandLine):
    """A command of this package in a process of its own.

    torch and ANTs never enter the process that runs the graph: a child that dies (out of memory, say) is an
    error with its last lines, while a worker process that dies would leave nipype's scheduler waiting for
    ever.
    """

    #: Name of the module under ``iqtflow.cli.commands``.
    module: str

    def __init__(self, **inputs) -> None:
        super().__init__(
            command=shlex.join(command_line(f"iqtflow.cli.commands.{self.module}")),
            terminal_output="file_split",
            **inputs,
        )

    def _format_arg(self, name, trait_spec, value):
        # The command passes through a shell, from which nipype protects single paths only.
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
        # nipype notes the exit code and goes on to look for outputs; what failed must not pass for "file not
        # found".
        if runtime.returncode not in correct_return_codes:
            self.raise_exception(runtime)
        return runtime
