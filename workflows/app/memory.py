"""How much memory the nodes of a scan state, by the size of that scan (`iqtflow.inference.footprint`)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from nibabel.affines import voxel_sizes
from nipype.pipeline.engine import Node, Workflow

from iqtflow.bids import Scan
from iqtflow.config import Settings
from iqtflow.inference import footprint
from iqtflow.inference.footprint import UNKNOWN_VOXELS, Footprint
from iqtflow.workflows.app.collect import peek

#: Share of a node's memory that one pass of a network may take; as in `iqtflow.workflows.enhance`.
PASS_SHARE = 0.8
#: A volume with its padding over the volume.
PADDED = 1.3
#: With --low-mem, no network takes more than this in one pass over a volume.
LOW_MEM_GB = 1.0


def state_memory(workflow: Workflow, scan: Scan) -> None:
    """Tell the nodes of a scan's sub-workflow how much memory they take; those without a measured footprint
    keep what they state.
    """
    voxels = count_voxels(scan)[0]
    for path in workflow.list_node_names():
        node = workflow.get_node(path)
        measured = footprint_of(node)
        if measured is not None:
            node._mem_gb = measured.gb(voxels)


def footprint_of(node: Node) -> Footprint | None:
    """Return the footprint of a node by its name, and a segmentation's by its engine."""
    kind = node.name.split("_")[0]
    if kind == "segment":
        engine = getattr(node.inputs, "engine", None)
        return {"spm": footprint.SPM, "derivatives": footprint.READY_MADE}.get(engine, footprint.ANTS)
    known = {"conform": "CONFORM", "simulate": "SIMULATE", "extract": "EXTRACT", "measure": "MEASURE"}
    return getattr(footprint, known[kind]) if kind in known else None


def enhancing_gb(scan: Scan, model: str | None, settings: Settings) -> float:
    """Memory (GB) of the node that enhances a scan: what it needs, but no more than its share of the run's.

    A network that takes volumes whole makes do with tiles where the share is less than that.
    """
    run = settings.run
    at_a_time = max(run.nprocs // run.omp_nthreads, 1)
    share = run.mem_gb / at_a_time
    voxels = count_voxels(scan)[1]
    needed = footprint.ENHANCE.gb(voxels)
    if scan.sidecar.get("SkullStripped") is not True:
        needed += footprint.BRAIN_MASK_GB
    if run.device == "cuda":
        needed += footprint.CUDA_GB
    else:
        one_pass = _pass_gb(model, voxels, settings.enhance.tiling)
        needed += (min(one_pass, LOW_MEM_GB) if run.low_mem else one_pass) / PASS_SHARE
    return round(min(needed, share), 2)


def count_voxels(scan: Scan) -> tuple[int, int]:
    """Return the voxels of a scan, and those that it has when its slices are as thin as its voxels are wide;
    of a large head when the header cannot be read.
    """
    try:
        image = peek(scan.path)
        voxels = math.prod(int(n) for n in image.shape[:3])
        sizes = voxel_sizes(image.affine).tolist()
        return voxels, int(voxels * max(sizes) / min(sizes))
    except Exception:  # the conform node says what is wrong, and fails this scan alone
        return UNKNOWN_VOXELS, UNKNOWN_VOXELS


def _pass_gb(model: str | None, voxels: int, tiling: str) -> float:
    """Memory of one pass of a network over the whole volume; none for one that sees training patches only."""
    if model is None or tiling == "paper":
        return 0.0
    card = _card(model)
    if tiling == "auto" and card.get("context", "patch") == "patch":
        return 0.0
    return voxels * PADDED * footprint.pass_bytes(card, precision="float32") / 1e9


@lru_cache(maxsize=64)
def _card(model: str) -> dict[str, Any]:
    from iqtflow.models.model_file import read_card

    return read_card(model)
