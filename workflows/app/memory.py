"""Memory that nodes state to their scheduler, from the size of the image.

Measured by ``benchmarks/bench_memory.py``: the largest resident memory of each step's process, over volumes
of 0.3 to 7 million voxels, plus a tenth. The memory of a network's pass is
`iqtflow.models.card.Card.pass_gb`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nibabel.affines import voxel_sizes
from nipype.pipeline.engine import Workflow

from iqtflow.bids import Scan
from iqtflow.config import Settings
from iqtflow.models.zoo import card_of
from iqtflow.workflows.app.collect import peek
from iqtflow.workflows.enhance import PASS_SHARE


@dataclass(frozen=True)
class Footprint:
    """Memory of a step: `base_gb`, and `voxel_bytes` for each voxel of its image."""

    base_gb: float
    voxel_bytes: float

    def gb(self, voxels: int) -> float:
        """Return the memory (GB) for an image of so many voxels."""
        return round(self.base_gb + self.voxel_bytes * voxels / 1e9, 2)


#: Measured steps, by the first part of their nodes' names; segmentation by its engine. ENHANCE is for tiles
#: of the training patch, for each voxel of the thin-slice volume. ANTs with one thread. SPM under Octave
#: takes 0.7 GB for a head of 1 mm, 2 GB for one of 0.7 mm.
FOOTPRINTS = {
    "conform": Footprint(0.15, 10),
    "simulate": Footprint(0.32, 16),
    "extract": Footprint(0.15, 45),
    "measure": Footprint(0.15, 28),
    "derivatives": Footprint(0.15, 62),
    "ants": Footprint(0.6, 160),
    "spm": Footprint(0.3, 85),
}
ENHANCE = Footprint(0.75, 60)
COMBINE = Footprint(0.7, 150)  #: three scans, for each voxel of a thin-slice volume
BRAIN_MASK_GB = 1.0  #: more, where the brain must be found in a head
CUDA_GB = 2.5  #: more, for CUDA in the computer's own memory
#: Memory of a training step for each voxel of its batch and each channel of the first level, in bytes.
TRAINING_CHANNEL_BYTES = 135
UNKNOWN_VOXELS = 1 << 24  #: voxels of an image whose header cannot be read: 256 x 256 x 256
PADDED = 1.3  #: voxels of a padded volume over those of the volume
LOW_MEM_GB = 1.0  #: memory of one pass with --low-mem, at most


def state_memory(workflow: Workflow, scan: Scan) -> None:
    """Set the memory of the nodes of a scan's sub-workflow; nodes that were not measured keep theirs."""
    voxels = count_voxels(scan)[0]
    for path in workflow.list_node_names():
        node = workflow.get_node(path)
        kind = node.name.split("_")[0]
        if kind == "segment":
            kind = getattr(node.inputs, "engine", "ants")
            kind = kind if kind in FOOTPRINTS else "ants"
        if kind in FOOTPRINTS:
            node._mem_gb = FOOTPRINTS[kind].gb(voxels)


def enhancing_gb(scan: Scan, model: str | None, settings: Settings) -> float:
    """Return the memory (GB) of the node that enhances a scan, at most its share of the run's memory.

    A network that takes whole volumes uses tiles if the share is too small.
    """
    run = settings.run
    at_a_time = max(run.nprocs // run.omp_nthreads, 1)
    share = run.mem_gb / at_a_time
    voxels = count_voxels(scan, settings.enhance.voxel_size)[1]
    needed = ENHANCE.gb(voxels)
    if scan.sidecar.get("SkullStripped") is not True:
        needed += BRAIN_MASK_GB
    if run.device == "cuda":
        needed += CUDA_GB
    else:
        one_pass = _pass_gb(model, voxels, settings.enhance.tiling)
        needed += (min(one_pass, LOW_MEM_GB) if run.low_mem else one_pass) / PASS_SHARE
    return round(min(needed, share), 2)


def count_voxels(scan: Scan, voxel_size: float | str = "native") -> tuple[int, int]:
    """Return the number of voxels of a scan, and that of its thin-slice volume; of a large head if the header
    cannot be read.

    With a voxel size in mm, the second is the larger one of the network's output and the enhanced volume.
    """
    try:
        image = peek(scan.path)
        voxels = math.prod(int(n) for n in image.shape[:3])
        sizes = voxel_sizes(image.affine).tolist()
        thin = voxels * max(sizes) / min(sizes)
        if not isinstance(voxel_size, str):
            edge = min(voxel_size, *sizes)
            thin = max(thin, voxels * math.prod(sizes) / (edge * edge * voxel_size))
        return voxels, int(thin)
    except Exception:  # the conform node reports it, and fails this scan alone
        return UNKNOWN_VOXELS, UNKNOWN_VOXELS


def combining_gb(scans: Sequence[Scan]) -> float:
    """Return the memory (GB) of the node that combines scans, from the largest thin-slice volume of them."""
    return COMBINE.gb(max(count_voxels(scan)[1] for scan in scans))


def training_gb(*, batch_size: int, filters: int, patch_voxels: int = 32**3) -> float:
    """Return the memory (GB) of a training: its batch decides, since the libraries are memory-mapped."""
    return round(0.6 + batch_size * patch_voxels * TRAINING_CHANNEL_BYTES * filters / 1e9, 2)


def _pass_gb(model: str | None, voxels: int, tiling: str) -> float:
    """Memory of one pass over the whole volume; 0 for a network that gets tiles of the training patch."""
    if model is None or tiling == "paper" or (tiling == "auto" and not card_of(model).whole):
        return 0.0
    return card_of(model).pass_gb(voxels) * PADDED
