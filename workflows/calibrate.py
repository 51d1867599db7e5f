"""The SNR of a scanner: measure one scan, and fit a distribution to many."""

from __future__ import annotations

from pathlib import Path

from nipype.pipeline.engine import Workflow

from iqtflow.config import RunSettings, SegmentationSettings
from iqtflow.segmentation.select import EngineChoice


def init_calibrate_wf(
    *,
    name: str = "calibrate",
    engine: EngineChoice | str = "ants",
    sampling_mm: float = SegmentationSettings.sampling_mm,
    derivatives_dir: Path | None = None,
    seed: int = RunSettings.seed,
    omp_nthreads: int = 1,
) -> Workflow:
    """Build the graph that measures the SNR of white and grey matter of one low-field scan.

    Workflow Graph
        conform -> segment -> measure

    Parameters
    ----------
    name
        Name of the workflow.
    engine
        What makes the tissue maps: "ants", "spm", "auto" (SPM where it is found), or the choice for this scan
        from `iqtflow.segmentation.select.engine_for`.
    sampling_mm
        Distance of the voxels that SPM estimates from, in mm.
    derivatives_dir
        Where ready-made maps were looked for; for messages.
    seed
        Seed of the embedded engine.
    omp_nthreads
        Threads of the segmentation.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        The graph, with the nodes ``inputnode`` and ``outputnode``.

    Inputs
    ------
    in_file
        Low-field T1w scan.
    sidecar
        Its BIDS metadata, a dict.
    skull_stripped
        Whether it shows the brain only: "yes", "no", or "auto" (the default), which looks at it.
    label, source
        What the scan is called in the measurement, and where it comes from: a BIDS URI.

    Outputs
    -------
    snr
        JSON: SNR of white and grey matter, noise, and how it was found.
    figure
        PNG: where tissue and noise were measured.
    wm, gm, csf, mask, segmentation
        Tissue probability maps, brain mask, JSON with engine and volumes.
    """
    from nipype.interfaces.utility import IdentityInterface
    from nipype.pipeline.engine import Node

    from iqtflow.interfaces.calibrate import MeasureSNR
    from iqtflow.interfaces.conform import ConformScan
    from iqtflow.workflows.segment import MAPS, init_segment_node

    fields = ["in_file", "sidecar", "skull_stripped", "label", "source"]
    inputnode = Node(IdentityInterface(fields), name="inputnode")
    inputnode.inputs.skull_stripped = "auto"
    fields = ["snr", "figure", *(name for _, name in MAPS), "segmentation"]
    outputnode = Node(IdentityInterface(fields), name="outputnode")
    conform = Node(ConformScan(), name="conform", mem_gb=0.5)
    segment = init_segment_node(
        engine,
        sampling_mm=sampling_mm,
        derivatives_dir=derivatives_dir,
        priors="atlas",
        seed=seed,
        omp_nthreads=omp_nthreads,
    )
    measure = Node(MeasureSNR(), name="measure", mem_gb=1.0)

    workflow = Workflow(name=name)
    workflow.connect(
        [
            (inputnode, conform, [("in_file", "in_file"), ("sidecar", "sidecar")]),
            (inputnode, segment, [("skull_stripped", "skull_stripped")]),
            (inputnode, measure, [("label", "label"), ("source", "source")]),
            (conform, segment, [("out_file", "in_file")]),
            (conform, measure, [("out_file", "in_file")]),
            (segment, measure, [("wm_file", "wm_file"), ("gm_file", "gm_file"), ("mask_file", "mask_file")]),
            (measure, outputnode, [("out_file", "snr"), ("figure_file", "figure")]),
            (segment, outputnode, [*MAPS, ("details_file", "segmentation")]),
        ]
    )
    return workflow


def init_fit_prior_wf(*, name: str = "fit_prior", prior_name: str = "site") -> Workflow:
    """Build the graph that fits a prior of tissue SNR to measured scans.

    Workflow Graph
        fit

    Parameters
    ----------
    name
        Name of the workflow.
    prior_name
        Name of the prior.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        The graph, with the nodes ``inputnode`` and ``outputnode``.

    Inputs
    ------
    measurements
        JSON files, ``snr`` of `init_calibrate_wf`.

    Outputs
    -------
    prior
        JSON, for ``--snr-prior`` and `iqtflow.interfaces.simulate.SimulateLowField`.
    figure
        The scans over the published prior and the fitted one.
    """
    from nipype.interfaces.utility import IdentityInterface
    from nipype.pipeline.engine import Node

    from iqtflow.interfaces.calibrate import FitPrior

    inputnode = Node(IdentityInterface(["measurements"]), name="inputnode")
    outputnode = Node(IdentityInterface(["prior", "figure"]), name="outputnode")
    fit = Node(FitPrior(name=prior_name), name="fit", mem_gb=0.5)

    workflow = Workflow(name=name)
    workflow.connect(
        [
            (inputnode, fit, [("measurements", "scans")]),
            (fit, outputnode, [("out_file", "prior"), ("figure_file", "figure")]),
        ]
    )
    return workflow
