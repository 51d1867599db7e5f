"""Tissue maps of one scan as a node, whichever engine makes them: the graph around it stays the same."""

from __future__ import annotations

import os
from pathlib import Path

from nipype.pipeline.engine import Node

from iqtflow.engines import EngineChoice

ANTS_MEM_GB = 3.0
SPM_MEM_GB = 2.0  # 0.7 mm voxels; a head of 1 mm takes 0.7 GB
READY_MADE_MEM_GB = 1.0


def init_segment_node(
    choice: EngineChoice | None = None,
    *,
    name: str = "segment",
    sampling_mm: float = 3.0,
    derivatives_dir: Path | None = None,
    seed: int = 0,
    omp_nthreads: int = 1,
) -> Node:
    """Build the node that makes tissue maps of a T1w image.

    Parameters
    ----------
    choice
        From `iqtflow.engines.engine_for`; None takes the embedded engine.
    name
        Name of the node.
    sampling_mm
        SPM's sampling distance.
    derivatives_dir
        Where ready-made maps were looked for.
    seed
        Seed of the embedded engine.
    omp_nthreads
        Threads of the embedded engine; SPM gains nothing from a second one.

    Returns
    -------
    Node
        Of `iqtflow.interfaces.segmentation.SegmentTissues`. With the embedded engine its cache key is that
        of a node that knows of no other engines.
    """
    from iqtflow.interfaces.segmentation import SegmentTissues

    engine = "ants" if choice is None else choice.engine
    inputs: dict[str, object] = {"seed": seed}
    threads, mem_gb = 1, READY_MADE_MEM_GB
    if engine == "ants":
        threads, mem_gb = omp_nthreads, ANTS_MEM_GB
    elif engine == "spm":
        spm, mem_gb = choice.spm, SPM_MEM_GB
        inputs |= {"engine": "spm", "sampling_distance": sampling_mm, "spm_version": spm.version}
        inputs |= _paths(tpm=spm.tpm, whole_head=choice.whole_head)
        # What is found in the environment is found there by the child, too, which records how.
        inputs |= _paths(spm_dir=spm.spm_dir if spm.spm_source == "argument" else None)
        inputs |= _paths(octave=spm.octave if spm.octave_source == "argument" else None)
    else:
        inputs |= {"engine": "derivatives", **_paths(derivatives=derivatives_dir)}
        if choice.maps is not None:
            maps = choice.maps
            inputs |= _paths(wm_map=maps.wm, gm_map=maps.gm, csf_map=maps.csf, ready_mask=maps.mask)
    return Node(SegmentTissues(**inputs, num_threads=threads), name=name, mem_gb=mem_gb, n_procs=threads)


def _paths(**paths: Path | None) -> dict[str, str]:
    return {name: os.fspath(path) for name, path in paths.items() if path is not None}
