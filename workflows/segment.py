"""Tissue maps of one scan, by one of three engines; the graph around them is the same for all."""

from __future__ import annotations

import os
from pathlib import Path

from nipype.pipeline.engine import Node, Workflow

from iqtflow.config import RunSettings, SegmentationSettings
from iqtflow.segmentation.select import EngineChoice, choose_engine

ANTS_MEM_GB = 3.0
SPM_MEM_GB = 2.0  # 0.7 mm voxels; a head of 1 mm takes 0.7 GB
READY_MADE_MEM_GB = 1.0
#: Outputs of the segmenting node that are images on the scan's grid, and their names in workflows.
MAPS = [("wm_file", "wm"), ("gm_file", "gm"), ("csf_file", "csf"), ("mask_file", "mask")]


def init_segment_wf(
    *,
    name: str = "segment",
    engine: str | EngineChoice = "ants",
    spm_dir: str | os.PathLike | None = None,
    tpm: str | os.PathLike | None = None,
    octave: str | None = None,
    sampling_mm: float = SegmentationSettings.sampling_mm,
    seed: int = RunSettings.seed,
    omp_nthreads: int = 1,
) -> Workflow:
    """Build the graph that makes tissue maps of a T1w image.

    Workflow Graph
        segment

    Parameters
    ----------
    name
        Name of the workflow.
    engine
        ``"ants"`` (the embedded one), ``"spm"``, or ``"auto"``: SPM where it is found, else ants.
    spm_dir, tpm, octave
        SPM for Octave, its tissue priors, the Octave program; each is looked for when not given.
    sampling_mm
        Distance of the voxels that SPM estimates from, in mm.
    seed
        Seed of the embedded engine.
    omp_nthreads
        Threads of the embedded engine; SPM gains nothing from a second one.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        The graph, with the nodes ``inputnode`` and ``outputnode``.

    Inputs
    ------
    in_file
        T1w image.
    skull_stripped
        Whether it shows the brain only: "yes", "no", or "auto" (the default), which looks at it.

    Outputs
    -------
    wm, gm, csf
        Probability maps of white matter, grey matter and cerebrospinal fluid.
    mask
        Brain mask.
    preproc
        Bias-corrected image.
    details
        JSON with engine, version, volumes (ml) and warnings.

    Raises
    ------
    SpmNotFoundError
        `engine` is ``"spm"``, or a part of SPM is named, and there is no usable SPM.
    """
    from nipype.interfaces.utility import IdentityInterface

    inputnode = Node(IdentityInterface(["in_file", "skull_stripped"]), name="inputnode")
    inputnode.inputs.skull_stripped = "auto"
    outputnode = Node(IdentityInterface(["wm", "gm", "csf", "mask", "preproc", "details"]), name="outputnode")
    choice = engine
    if isinstance(engine, str):
        choice = choose_engine(engine, spm_dir=spm_dir, tpm=tpm, octave=octave)
    segment = init_segment_node(choice, sampling_mm=sampling_mm, seed=seed, omp_nthreads=omp_nthreads)

    workflow = Workflow(name=name)
    workflow.connect(
        [
            (inputnode, segment, [("in_file", "in_file"), ("skull_stripped", "skull_stripped")]),
            (segment, outputnode, [*MAPS, ("preproc_file", "preproc"), ("details_file", "details")]),
        ]
    )
    return workflow


def init_segment_node(
    choice: EngineChoice | str | None = None,
    *,
    name: str = "segment",
    sampling_mm: float = SegmentationSettings.sampling_mm,
    derivatives_dir: Path | None = None,
    priors: str | None = None,
    seed: int = RunSettings.seed,
    omp_nthreads: int = 1,
) -> Node:
    """Build the node that makes tissue maps of a T1w image.

    Parameters
    ----------
    choice
        From `iqtflow.segmentation.select.engine_for`, or an engine by name; None takes the embedded engine.
    name
        Name of the node.
    sampling_mm
        SPM's sampling distance.
    derivatives_dir
        Where ready-made maps were looked for.
    priors
        "atlas": the embedded engine also uses the tissue probabilities of an atlas; for thick slices.
    seed
        Seed of the embedded engine.
    omp_nthreads
        Threads of the embedded engine; SPM gains nothing from a second one.

    Returns
    -------
    Node
        Of `iqtflow.interfaces.segmentation.SegmentTissues`. Only the inputs of its own engine are set:
        settings of other engines do not change its cache key.
    """
    from iqtflow.interfaces.segmentation import SegmentTissues

    choice = choose_engine(choice or "ants") if not isinstance(choice, EngineChoice) else choice
    engine = choice.engine
    # Only the embedded engine is random: other engines have no seed in their cache key.
    inputs: dict[str, object] = {"seed": seed} if engine == "ants" else {}
    threads, mem_gb = 1, READY_MADE_MEM_GB
    if engine == "ants":
        threads, mem_gb = omp_nthreads if priors is None else 1, ANTS_MEM_GB
        inputs |= {} if priors is None else {"priors": priors}
    elif engine == "spm":
        spm, mem_gb = choice.spm, SPM_MEM_GB
        inputs |= {"engine": "spm", "sampling_distance": sampling_mm, "spm_version": spm.version}
        inputs |= _paths(tpm=spm.tpm, whole_head=choice.whole_head)
        # Only paths that were given. The child process finds the others itself, and records where.
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
