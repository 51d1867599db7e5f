"""The part of the participant's graph that makes one volume of the scans of a session."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nipype.pipeline.engine import Node, Workflow

from iqtflow.bids import Scan
from iqtflow.bids.names import node_name, output_name
from iqtflow.bids.sessions import find_sessions
from iqtflow.config import Settings
from iqtflow.workflows.app.memory import combining_gb

#: Outputs of a scan's sub-workflow (with the node), and inputs of the node that combines.
FIELDS = {
    "enhance.out_file": "enhanced_files",
    "enhance.mask_file": "mask_files",
    "enhance.details_file": "details_files",
    "enhance.std_file": "std_files",
    "conform.sidecar_file": "sidecar_files",
}
DESCRIPTIONS = {
    "combined": "Scans of one session, each enhanced by image quality transfer, registered and combined.",
    "combined_std": "Predicted error (standard deviation) of the combined volume, in its units.",
}


def add_combinations(
    workflow: Workflow, members: Sequence[tuple[Scan, Workflow]], settings: Settings
) -> list[tuple[Scan, Workflow]]:
    """Add a sub-workflow for each session with several scans: combine them, and store the result.

    Parameters
    ----------
    workflow
        The graph, changed in place.
    members
        Scans and their sub-workflows.
    settings
        All settings.

    Returns
    -------
    list of (combined, part)
        As `iqtflow.bids.sessions.find_sessions` names them; ``part`` has a node ``combine``.
    """
    from nipype.interfaces.utility import Merge

    parts = {scan.path: part for scan, part in members}
    found = []
    for combined, scans in find_sessions(scan for scan, _ in members):
        part, node = _combining(combined, scans, settings)
        for output, field in FIELDS.items():
            merge = Node(Merge(len(scans)), name=f"list_{field}", mem_gb=0.1)
            part.connect(merge, "out", node, field)
            for number, scan in enumerate(scans, start=1):
                workflow.connect([(parts[scan.path], part, [(output, f"{merge.name}.in{number}")])])
        found.append((combined, part))
    return found


def _combining(combined: Scan, scans: Sequence[Scan], settings: Settings) -> tuple[Workflow, Node]:
    """Return the sub-workflow of a session, and its node that combines."""
    from iqtflow.interfaces.combine import CombineStacks
    from iqtflow.interfaces.sink import SinkDerivative

    part, size = Workflow(name=f"{node_name(combined.name)}_combined"), settings.enhance.voxel_size
    node = Node(
        CombineStacks(
            in_files=[os.fspath(scan.path) for scan in scans],
            names=[scan.path.relative_to(scan.root).as_posix() for scan in scans],
            num_threads=settings.run.omp_nthreads,
            voxel_size=size,
        ),
        name="combine",
        mem_gb=combining_gb(scans),
    )
    sources = {"Sources": [scan.uri for scan in scans], "RandomSeed": settings.run.seed}
    for kind, output in (("combined", "out_file"), ("combined_std", "std_file")):
        sink = SinkDerivative(
            base_directory=os.fspath(settings.paths.output_dir),
            name=os.fspath(output_name(kind, combined)),
            metadata={**sources, "Description": DESCRIPTIONS[kind]},
        )
        store = Node(sink, name=f"sink_{kind}", mem_gb=0.3)
        told = (("details_file", _as_list), "metadata_files")
        part.connect([(node, store, [(output, "in_file"), told])])
    return part, node


def sessions_to_combine(scans: Sequence[Scan], settings: Settings) -> list[tuple[Scan, list[Scan]]]:
    """Return the sessions of which a run makes one volume."""
    wanted = settings.run.mode == "enhance" and settings.enhance.combine_stacks
    return find_sessions(scans) if wanted else []


def _as_list(path):
    return [path]
