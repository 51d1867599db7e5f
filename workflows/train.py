"""Training of a model on patch libraries."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from nipype.pipeline.engine import Workflow

from iqtflow.config import RunSettings, TrainSettings
from iqtflow.utils.files import require_name

TRAIN_MEM_GB = 6.0


def init_train_wf(
    *,
    name: str = "train",
    model_name: str = "iqt",
    ensemble: int = TrainSettings.ensemble,
    seed: int = RunSettings.seed,
    device: str = "cpu",
    omp_nthreads: int = 1,
    mem_gb: float = TRAIN_MEM_GB,
    devices: int = TrainSettings.devices,
    num_nodes: int = TrainSettings.num_nodes,
    tensorboard_dir: str | os.PathLike | None = None,
    checkpoint_dir: str | os.PathLike | None = None,
    split: Mapping[str, Sequence[str]] | None = None,
    data: Mapping[str, str] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Workflow:
    """Build the graph that trains an ensemble of networks, each from a seed of its own.

    Workflow Graph
        train_m1, train_m2, ... -> members -> join

    Parameters
    ----------
    name
        Name of the workflow.
    model_name
        Name of the model.
    ensemble
        Networks.
    seed
        Seed of the first network; each further network adds 1.
    device
        "cpu" or "cuda".
    omp_nthreads
        Threads of each network on the CPU.
    mem_gb
        Memory of each training node.
    devices, num_nodes
        Devices (on the CPU: processes) of each computer, and computers, that train one network together.
    tensorboard_dir
        Folder of curves for TensorBoard, if any; each network gets a folder in it.
    checkpoint_dir
        Folder with a folder of checkpoints for each network. None keeps them in the node's folder, which is
        emptied before the node runs again: an interrupted training then starts from the beginning.
    split
        Labels of participants by part, for the model's card.
    data
        Name, DOI and licence of the training data, for the model's card, from
        `iqtflow.bids.sidecars.describe_source`.
    training
        More inputs of `iqtflow.interfaces.train.TrainModel` by name, such as ``{"upsampling_factor": 8}``.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        The graph, with the nodes ``inputnode`` and ``outputnode``.

    Inputs
    ------
    train_libraries, validation_libraries
        Patch libraries (``library`` of `iqtflow.workflows.prepare.init_prepare_wf`); no subject in both.

    Outputs
    -------
    model
        The ensemble (.safetensors).
    members
        Models of one network each.
    member1, member2, ...
        The same, one by one.
    curves1, curves2, ...
        Training curves (.csv).
    """
    from nipype.interfaces.utility import IdentityInterface, Merge
    from nipype.pipeline.engine import Node

    from iqtflow.interfaces.train import JoinEnsemble, TrainModel

    require_name(model_name, "model_name")
    members = range(1, ensemble + 1)
    libraries = ["train_libraries", "validation_libraries"]
    inputnode = Node(IdentityInterface(libraries), name="inputnode")
    fields = ["model", "members", *(f"{what}{member}" for member in members for what in ("member", "curves"))]
    outputnode = Node(IdentityInterface(fields), name="outputnode")
    card = {"split": {part: list(labels) for part, labels in split.items()}} if split else {}
    if data:
        card["data"] = dict(data)
    merge = Node(Merge(ensemble), name="members")
    join = Node(JoinEnsemble(name=model_name, card=card), name="join")

    workflow = Workflow(name=name)
    workflow.connect(
        [
            (merge, join, [("out", "members")]),
            (merge, outputnode, [("out", "members")]),
            (join, outputnode, [("out_file", "model")]),
        ]
    )
    for member in members:
        train = Node(
            TrainModel(
                **(training or {}),
                seed=seed + member - 1,
                name=model_name,
                device=device,
                use_gpu=device == "cuda",
                num_threads=omp_nthreads,
                devices=devices,
                num_nodes=num_nodes,
            ),
            name=f"train_m{member}",
            mem_gb=mem_gb,
            n_procs=devices if device == "cuda" else devices * omp_nthreads,
        )
        for field, folder in (("tensorboard", tensorboard_dir), ("checkpoint_dir", checkpoint_dir)):
            if folder is not None:
                setattr(train.inputs, field, os.path.join(folder, f"{model_name}_member-{member}"))
        workflow.connect(
            [
                (inputnode, train, [(field, field) for field in libraries]),
                (train, merge, [("out_file", f"in{member}")]),
                (train, outputnode, [("out_file", f"member{member}"), ("curves_file", f"curves{member}")]),
            ]
        )
    return workflow
