"""From a high-field scan to everything that training needs of a subject: tissue maps, simulated low-field
scans, patch library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Workflow

from iqtflow.config import RunSettings, SegmentationSettings, TrainSettings
from iqtflow.segmentation.select import EngineChoice

SIMULATE_MEM_GB = 1.5


def init_prepare_wf(
    *,
    name: str = "prepare",
    upsampling_factor: int = TrainSettings.upsampling_factor,
    slice_axes: Sequence[str] = TrainSettings.slice_axes,
    n_draws: int = 1,
    snr_prior: str = TrainSettings.snr_prior,
    simulator: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = RunSettings.seed,
    first_draw_seed: int | None = None,
    stored_draws: int = 0,
    patch_step: Sequence[int] = TrainSettings.patch_step,
    background_limit: float = TrainSettings.background_limit,
    pairs: Mapping[str, Any] | None = None,
    omp_nthreads: int = 1,
    engine: EngineChoice | str = "ants",
    sampling_mm: float = SegmentationSettings.sampling_mm,
    derivatives_dir: Path | None = None,
) -> Workflow:
    """Build the graph that prepares one high-field scan for training.

    Workflow Graph
        conform -> segment -> simulate_draw01, simulate_draw02, ...
                           -> extract -> pairs

    Parameters
    ----------
    name
        Name of the workflow.
    upsampling_factor
        k.
    slice_axes
        Array axes ("x", "y", "z") along which slices are made thick; the draws take them in turn.
    n_draws
        Simulated low-field scans that are written out.
    snr_prior
        A published prior by name, or a JSON file.
    simulator
        For each slice axis, more inputs of `iqtflow.interfaces.simulate.SimulateLowField` by name, such as
        ``{"z": {"noise": "rician"}}``.
    seed
        Seed of the tissue maps and of the patch library's reference voxels.
    first_draw_seed
        Seed of the first draw; each further draw adds 1. Every scan needs a different seed
        (`iqtflow.bids.scan_seed`). None: ``1000 seed + 1``.
    stored_draws
        Number of draws, from the first, that the patch library keeps for training.
    patch_step, background_limit
        Grid of the patches, and the largest share of background in one.
    pairs
        Inputs of `iqtflow.interfaces.patches.WritePairs` by name, to write the paper's explicit library, too;
        None does not write it.
    omp_nthreads
        Threads of the segmentation.
    engine
        What makes the tissue maps: "ants", "spm", "auto" (SPM where it is found), or the choice for this scan
        from `iqtflow.segmentation.select.engine_for`.
    sampling_mm
        Distance of the voxels that SPM estimates from, in mm.
    derivatives_dir
        Where ready-made maps were looked for; for messages.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        The graph, with the nodes ``inputnode`` and ``outputnode``.

    Inputs
    ------
    in_file
        High-field T1w image.
    sidecar
        Its BIDS metadata, a dict.
    skull_stripped
        Whether it shows the brain only: "yes", "no", or "auto" (the default), which looks at it.
    subject
        Label without sub-. Training uses it to keep subjects of training and evaluation apart.

    Outputs
    -------
    wm, gm, csf, mask, preproc, segmentation
        Tissue probability maps, brain mask, bias-corrected image, JSON with engine and volumes.
    library
        Patch library.
    pairs, pairs_header
        The paper's explicit library (.npy) and what it holds (.json), where asked for.
    draw01, draw01_metadata, ...
        Simulated low-field scans and what was drawn for them.
    """
    from nipype.interfaces.utility import IdentityInterface, Merge
    from nipype.pipeline.engine import Node

    from iqtflow.interfaces.conform import ConformScan
    from iqtflow.interfaces.patches import ExtractPatches, WritePairs
    from iqtflow.interfaces.simulate import SimulateLowField
    from iqtflow.workflows.segment import MAPS, init_segment_node

    draws = [f"draw{i:02d}" for i in range(1, n_draws + 1)]
    first = 1000 * seed + 1 if first_draw_seed is None else first_draw_seed
    inputnode = Node(IdentityInterface(["in_file", "sidecar", "skull_stripped", "subject"]), name="inputnode")
    inputnode.inputs.skull_stripped = "auto"
    fields = [*(name for _, name in MAPS), "preproc", "segmentation", "library", "pairs", "pairs_header"]
    fields += [*draws, *(f"{draw}_metadata" for draw in draws)]
    outputnode = Node(IdentityInterface(fields), name="outputnode")
    conform = Node(ConformScan(), name="conform", mem_gb=0.5)
    segment = init_segment_node(
        engine,
        sampling_mm=sampling_mm,
        derivatives_dir=derivatives_dir,
        seed=seed,
        omp_nthreads=omp_nthreads,
    )
    extract = Node(
        ExtractPatches(
            upsampling_factor=upsampling_factor,
            slice_axes=list(slice_axes),
            seed=seed,
            step=tuple(patch_step),
            background_limit=background_limit,
        ),
        name="extract",
        mem_gb=1.0,
    )

    workflow = Workflow(name=name)
    workflow.connect(
        [
            (inputnode, conform, [("in_file", "in_file"), ("sidecar", "sidecar")]),
            (inputnode, segment, [("skull_stripped", "skull_stripped")]),
            (conform, segment, [("out_file", "in_file")]),
            (inputnode, extract, [("subject", "subject")]),
            (conform, extract, [("out_file", "in_file")]),
            (segment, extract, [("wm_file", "wm_file"), ("gm_file", "gm_file"), ("mask_file", "mask_file")]),
            (segment, outputnode, [*MAPS, ("preproc_file", "preproc"), ("details_file", "segmentation")]),
            (extract, outputnode, [("out_file", "library")]),
        ]
    )
    if stored_draws:
        stored = {"out_file": "draw_files", "metadata_file": "draw_metadata_files"}
        merge = {field: Node(Merge(stored_draws), name=into) for field, into in stored.items()}
        workflow.connect([(merge[field], extract, [("out", into)]) for field, into in stored.items()])
    if pairs is not None:
        write = Node(WritePairs(**pairs), name="pairs", mem_gb=1.0)
        workflow.connect(
            [
                (extract, write, [("out_file", "library")]),
                (write, outputnode, [("out_file", "pairs"), ("header_file", "pairs_header")]),
            ]
        )
    for i, draw in enumerate(draws):
        axis = slice_axes[i % len(slice_axes)]
        simulate = Node(
            SimulateLowField(
                upsampling_factor=upsampling_factor,
                slice_axis=axis,
                snr_prior=snr_prior,
                seed=first + i,
                **(simulator or {}).get(axis, {}),
            ),
            name=f"simulate_{draw}",
            mem_gb=SIMULATE_MEM_GB,
        )
        workflow.connect(
            [
                (conform, simulate, [("out_file", "in_file")]),
                (segment, simulate, [("wm_file", "wm_file"), ("gm_file", "gm_file")]),
                (simulate, outputnode, [("out_file", draw), ("metadata_file", f"{draw}_metadata")]),
            ]
        )
        if i < stored_draws:
            workflow.connect([(simulate, node, [(field, f"in{i + 1}")]) for field, node in merge.items()])
    return workflow
