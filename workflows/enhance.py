"""From a thick-slice scan to a thin-slice one."""

from __future__ import annotations

from nipype.pipeline.engine import Workflow

from iqtflow.config import EnhanceSettings, RunSettings

#: Memory of the child process that enhances a scan, in GB, by default.
ENHANCE_MEM_GB = 4.0
#: Part of a node's memory that one pass of the network may use; scan, mask and results need the rest.
PASS_SHARE = 0.8


def init_enhance_wf(
    *,
    name: str = "enhance",
    model: str | None = None,
    device: str = "cpu",
    force: bool = RunSettings.force,
    omp_nthreads: int = 1,
    mem_gb: float = ENHANCE_MEM_GB,
    tiling: str = EnhanceSettings.tiling,
    precision: str = EnhanceSettings.precision,
    slice_intensity: str = EnhanceSettings.slice_intensity,
    mirror: bool = EnhanceSettings.mirror,
    keep_white_matter: bool = EnhanceSettings.keep_white_matter,
    data_consistency: bool = EnhanceSettings.data_consistency,
    voxel_size: float | str = EnhanceSettings.voxel_size,
    acquired_spacing: float | None = EnhanceSettings.acquired_spacing,
    acquired_axis: str | None = EnhanceSettings.acquired_axis,
) -> Workflow:
    """Build the graph that enhances one scan.

    Workflow Graph
        conform -> enhance

    Parameters
    ----------
    name
        Name of the workflow.
    model
        Model file, or name of a shipped model. None: the shipped model whose upsampling factor fits
        the slice spacing.
    device
        "cpu" or "cuda".
    force
        Enhance near-isotropic scans too.
    omp_nthreads
        Threads of the network.
    mem_gb
        Memory of the node ``enhance`` in GB; a volume that does not fit is enhanced in tiles.
    tiling, precision, slice_intensity, mirror, keep_white_matter, data_consistency, voxel_size
        See `iqtflow.interfaces.enhance.EnhanceVolume`.
    acquired_spacing, acquired_axis
        See `iqtflow.interfaces.enhance.EnhanceVolume`; for scans that were interpolated before.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        The graph, with the nodes ``inputnode`` and ``outputnode``.

    Inputs
    ------
    in_file
        Scan.
    sidecar
        Its BIDS metadata, a dict.

    Outputs
    -------
    enhanced, std, spline
        Enhanced volume, predicted error (standard deviation; undefined if the model predicts none), and cubic
        B-spline interpolation, all on one grid.
    mask
        Brain mask on the scan's own grid.
    residual
        Scan minus the scan that the enhanced volume predicts, in standard deviations of the noise, on the
        scan's own grid.
    details
        JSON: geometry, model, audit, device, seconds.
    """
    from nipype.interfaces.utility import IdentityInterface
    from nipype.pipeline.engine import Node

    from iqtflow.interfaces.conform import ConformScan
    from iqtflow.interfaces.enhance import EnhanceVolume

    inputnode = Node(IdentityInterface(["in_file", "sidecar"]), name="inputnode")
    outputs = ["enhanced", "std", "spline", "mask", "residual", "details"]
    outputnode = Node(IdentityInterface(outputs), name="outputnode")
    conform = Node(ConformScan(), name="conform", mem_gb=0.5)
    enhance = Node(
        EnhanceVolume(
            device=device,
            use_gpu=device == "cuda",
            force=force,
            num_threads=omp_nthreads,
            tiling=tiling,
            precision=precision,
            slice_intensity=slice_intensity,
            mirror=mirror,
            keep_white_matter="yes" if keep_white_matter else "no",
            data_consistency=data_consistency,
            voxel_size=voxel_size,
        ),
        name="enhance",
        mem_gb=mem_gb,
        n_procs=1 if device == "cuda" else omp_nthreads,
    )
    if model is not None:
        enhance.inputs.model = model
    if acquired_spacing is not None:
        enhance.inputs.acquired_spacing = acquired_spacing
    if acquired_axis is not None:
        enhance.inputs.acquired_axis = acquired_axis
    if device == "cpu":
        enhance.inputs.max_memory_gb = PASS_SHARE * mem_gb

    made = [("out_file", "enhanced"), ("std_file", "std"), ("spline_file", "spline")]
    made += [("mask_file", "mask"), ("residual_file", "residual"), ("details_file", "details")]
    workflow = Workflow(name=name)
    workflow.connect(
        [
            (inputnode, conform, [("in_file", "in_file"), ("sidecar", "sidecar")]),
            (conform, enhance, [("out_file", "in_file"), ("sidecar_file", "sidecar_file")]),
            (enhance, outputnode, made),
        ]
    )
    return workflow
