"""Evaluation of a model on a simulated scan, against the high-field scan that it was made from."""

from __future__ import annotations

from nipype.pipeline.engine import Workflow

from iqtflow.workflows.enhance import ENHANCE_MEM_GB


def init_evaluate_wf(
    *,
    name: str = "evaluate",
    members: int = 0,
    device: str = "cpu",
    omp_nthreads: int = 1,
    mem_gb: float = ENHANCE_MEM_GB,
) -> Workflow:
    """Build the graph that enhances one simulated scan and compares it with the scan that it was made from.

    Workflow Graph
        enhance, enhance_m1, enhance_m2, ... -> evaluate

    Parameters
    ----------
    name
        Name of the workflow.
    members
        Number of networks of the ensemble that are also evaluated one by one.
    device
        "cpu" or "cuda".
    omp_nthreads
        Threads of the network on the CPU.
    mem_gb
        Memory of the enhancing node.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        The graph, with the nodes ``inputnode`` and ``outputnode``.

    Inputs
    ------
    model
        Model file, or name of a shipped one.
    member1, member2, ...
        Models of one network each.
    in_file, sidecar_file
        Low-field scan and its metadata (JSON), as `iqtflow.interfaces.simulate.SimulateLowField` makes them.
    skull_stripped
        Whether it shows the brain only: "yes", "no", or "auto" (the default), which looks at it.
    truth, mask
        High-field image, and brain mask on its grid.
    subject
        Participant label, for the table.

    Outputs
    -------
    metrics
        JSON: PSNR and MSSIM of the model, of its networks one by one, and of the cubic spline; and how the
        error grows with the standard deviation, if the model predicts one.
    enhanced, std, spline
        The volumes, on one grid; std is undefined for a single network that does not predict its error.
    """
    from nipype.interfaces.utility import IdentityInterface, Merge
    from nipype.pipeline.engine import Node

    from iqtflow.interfaces.enhance import EnhanceVolume
    from iqtflow.interfaces.evaluate import EvaluateVolume

    fields = ["model", "in_file", "sidecar_file", "skull_stripped", "truth", "mask", "subject"]
    single = [f"member{i}" for i in range(1, members + 1)]
    inputnode = Node(IdentityInterface([*fields, *single]), name="inputnode")
    inputnode.inputs.skull_stripped = "auto"
    outputnode = Node(IdentityInterface(["metrics", "enhanced", "std", "spline"]), name="outputnode")

    def enhancing(label: str) -> Node:
        return Node(
            EnhanceVolume(device=device, use_gpu=device == "cuda", num_threads=omp_nthreads, force=True),
            name=label,
            mem_gb=mem_gb,
            n_procs=1 if device == "cuda" else omp_nthreads,
        )

    enhance = enhancing("enhance")
    evaluate = Node(EvaluateVolume(), name="evaluate", mem_gb=2.0)

    made = [("out_file", "enhanced"), ("std_file", "std"), ("spline_file", "spline")]
    workflow = Workflow(name=name)
    workflow.connect(
        [
            (inputnode, enhance, [(field, field) for field in fields[:4]]),
            (inputnode, evaluate, [("truth", "reference"), ("mask", "mask"), ("subject", "subject")]),
            (enhance, evaluate, [*made, ("details_file", "details")]),
            (enhance, outputnode, made),
            (evaluate, outputnode, [("out_file", "metrics")]),
        ]
    )
    if members:
        merge = Node(Merge(members), name="members")
        for i, model in enumerate(single, start=1):
            alone = enhancing(f"enhance_m{i}")
            given = [(model, "model"), *((field, field) for field in fields[1:4])]
            workflow.connect([(inputnode, alone, given), (alone, merge, [("out_file", f"in{i}")])])
        workflow.connect(merge, "out", evaluate, "members")
    return workflow
