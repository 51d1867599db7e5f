"""Cheap nodes for tests of what runs nodes: each writes a file, after some time, or dies on the way."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)
from nipype.pipeline.engine import Node, Workflow


class _JobInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, desc="what it depends on")
    text = traits.Str("", usedefault=True, desc="what it adds")
    seconds = traits.Float(0.0, usedefault=True, nohash=True, desc="time that it sleeps")
    work = traits.Int(0, usedefault=True, nohash=True, desc="loops that keep a processor busy")
    fate = traits.Enum(
        "live", "raise", "killed", "exit", "memory", usedefault=True, nohash=True, desc="how it ends"
    )
    journal = traits.Str(nohash=True, desc="file that gets a line at the beginning and at the end")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="count against the GPU slots")


class _JobOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="text of all jobs so far")


class Job(SimpleInterface):
    """Append a text to a file."""

    input_spec = _JobInputSpec
    output_spec = _JobOutputSpec

    def _run_interface(self, runtime):
        before = Path(self.inputs.in_file).read_text() if isdefined(self.inputs.in_file) else ""
        self._note(f"begin {self.inputs.text}")
        time.sleep(self.inputs.seconds)
        total = 0
        for i in range(self.inputs.work):
            total += i * i
        if self.inputs.fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.inputs.fate == "exit":
            os._exit(3)
        elif self.inputs.fate == "memory":
            raise MemoryError
        elif self.inputs.fate == "raise":
            raise ValueError(f"{self.inputs.text} cannot be worked with")
        self._note(f"end {self.inputs.text}")
        out = Path(runtime.cwd, "out.txt")
        out.write_text(before + self.inputs.text)
        self._results["out_file"] = os.fspath(out)
        return runtime

    def _note(self, line: str) -> None:
        if isdefined(self.inputs.journal):
            with open(self.inputs.journal, "a") as stream:
                stream.write(f"{time.monotonic():.4f} {line}\n")


class UseGpu(Job):
    """Hold a card as the commands do, and note which."""

    def _run_interface(self, runtime):
        from iqtflow.utils.gpus import VISIBLE, device_claimed

        with device_claimed("cuda") as card:
            assert os.environ[VISIBLE] == card
            self._note(f"begin {card}")
            time.sleep(self.inputs.seconds)
            self._note(f"end {card}")
        return super()._run_interface(runtime)


class ShowGpu(Job):
    """Write what SLURM lets the job see."""

    def _run_interface(self, runtime):
        self.inputs.text = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        return super()._run_interface(runtime)


def chain(name: str, n: int = 3, **inputs: object) -> Workflow:
    """A workflow of `n` jobs in a row; `inputs` are those of the second."""
    jobs = [Node(Job(text=f"{name}{i} "), name=f"job{i}", mem_gb=0.1) for i in range(n)]
    for field, value in inputs.items():
        setattr(jobs[1].inputs, field, value)
    workflow = Workflow(name=name)
    for one, next_one in pairwise(jobs):
        workflow.connect(one, "out_file", next_one, "in_file")
    return workflow


def graph(folder: Path, *parts: Workflow | Node, name: str = "graph") -> Workflow:
    """A workflow of independent parts that works in a folder."""
    workflow = Workflow(name=name, base_dir=os.fspath(folder))
    workflow.add_nodes(list(parts))
    return workflow
