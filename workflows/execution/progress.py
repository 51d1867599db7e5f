"""Progress of a run on the terminal, from nipype's status callback."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Workflow

from iqtflow.bids.names import label_of
from iqtflow.config import Settings
from iqtflow.reports.terminal import Ledger, Step, choose_view

#: Steps by the first part of their node's name: words, and seconds on two processors for a usual head.
STAGES: dict[str, tuple[str, float]] = {
    "conform": ("checking the scan", 2),
    "enhance": ("enhancing", 40),
    "combine": ("combining the scans", 60),
    "segment": ("tissue maps", 120),
    "simulate": ("simulating low field", 8),
    "extract": ("cutting patches", 8),
    "measure": ("measuring SNR", 3),
    "fit": ("fitting the prior", 3),
    "train": ("training", 3600),
    "evaluate": ("comparing with the high-field scan", 5),
    "join": ("joining the networks", 2),
    "summarise": ("statistics over all subjects", 2),
    "stamp": ("writing the scores into the model", 2),
    "report": ("drawing the page", 8),
    "sink": ("writing", 1),
}


@contextmanager
def followed(workflow: Workflow, settings: Settings) -> Iterator[Callable[[Any, str], None]]:
    """Show the progress of a graph while it runs.

    Parameters
    ----------
    workflow
        The graph, before it is run.
    settings
        How much to print, and how many subjects can be processed at the same time.

    Yields
    ------
    callable
        For the key ``status_callback`` of the scheduler's ``plugin_args``: takes a node and ``start``,
        ``end`` or ``exception``.
    """
    steps = [step_of(path) for path in sorted(_names(workflow))]
    run = settings.run
    running: dict[tuple[str, str], Any] = {}
    ledger = Ledger(
        steps,
        at_a_time=max(run.nprocs // max(run.omp_nthreads, 1), 1),
        told_s=lambda step: seconds_told(running.get((step.subject, step.name))),
    )
    view = choose_view(ledger, verbose=run.verbose)

    def tell(node: Any, status: str) -> None:
        where = step_of(node.fullname.partition(".")[2])
        key = (where.subject, where.name)
        if where.name not in ledger.subjects.get(where.subject, {}):
            return  # a node that nipype added
        if status == "start":
            running[key] = node
            step = ledger.start(*key)
        else:
            running.pop(key, None)
            step = ledger.end(*key, failed=status == "exception")
        with suppress(OSError):  # a closed terminal does not end the run
            view.changed(step)

    with view:
        yield tell


def _names(workflow: Workflow, above: str = "") -> Iterator[str]:
    """Yield the paths of all nodes that run; nipype's own `get_node` searches the whole graph for each."""
    for node in workflow._graph:
        if isinstance(node, Workflow):
            yield from _names(node, f"{above}{node.name}.")
        elif not isinstance(node.interface, IdentityInterface):  # those are never run
            yield f"{above}{node.name}"


def step_of(path: str) -> Step:
    """Return the subject of a node and what it does, by its path in the graph (``sub_01_T1w.enhance``)."""
    *chain, name = path.split(".")
    kind = re.split(r"_|\d", name)[0]
    words, seconds = STAGES.get(kind, (name.replace("_", " "), 2))
    owner = re.match(r"(?:sub|evaluate)_((?:[A-Za-z0-9]|__)+)", chain[0]) if chain else None
    if owner:
        subject = f"sub-{label_of(owner[1])}"
    elif kind in ("report", "enhance", "evaluate") and "_" in name:
        subject = f"sub-{label_of(name.split('_', 1)[1])}"
    elif name.startswith("train_m"):
        fold = re.fullmatch(r"train_fold(\d+)", chain[0]) if chain else None
        subject = f"{f'fold {fold[1]}, ' if fold else ''}network {name.removeprefix('train_m')}"
    else:
        subject = "model"
    return Step(subject, path, words, kind, seconds)


def seconds_told(node: Any) -> float | None:
    """Return the remaining seconds that a node's child process printed last: ``... N s left``."""
    if node is None:
        return None
    try:
        with open(Path(node.output_dir()) / "stdout.nipype", "rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(stream.tell() - 2000, 0))
            found = re.findall(rb"(\d+(?:\.\d+)?) s left", stream.read())
    except OSError:
        return None
    return float(found[-1]) if found else None
