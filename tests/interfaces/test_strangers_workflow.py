"""Interfaces inside a workflow that knows nothing of iqtflow: nested, iterated, mapped, in parallel."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import JoinNode, MapNode, Node, Workflow

from iqtflow.interfaces import ConformScan, SimulateLowField


def test_nodes_run_nested_iterated_and_mapped_in_several_processes(brain_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    axes = Node(IdentityInterface(["slice_axis"]), name="axes", iterables=[("slice_axis", ["x", "z"])])
    simulate = MapNode(SimulateLowField(upsampling_factor=4), iterfield=["seed"], name="simulate", mem_gb=1)
    for field, name in (("in_file", "t1"), ("wm_file", "wm"), ("gm_file", "gm")):
        setattr(simulate.inputs, field, os.fspath(brain_files / f"{name}.nii.gz"))
    simulate.inputs.seed = [1]
    conform = MapNode(ConformScan(), iterfield=["in_file"], name="conform", mem_gb=0.5)
    inner = Workflow(name="inner")
    inner.connect([(simulate, conform, [("out_file", "in_file")])])
    joined = JoinNode(IdentityInterface(["scans"]), joinsource="axes", joinfield="scans", name="joined")
    outer = Workflow(name="outer", base_dir=os.fspath(tmp_path / "work"))
    outer.connect(
        [
            (axes, inner, [("slice_axis", "simulate.slice_axis")]),
            (inner, joined, [("conform.out_file", "scans")]),
        ]
    )
    graph = outer.run(plugin="MultiProc", plugin_args={"n_procs": 2, "memory_gb": 4})
    made = next(node for node in graph.nodes() if node.name == "joined").result.outputs.scans
    assert [nib.load(path).shape for (path,) in made] == [(12, 52, 40), (48, 52, 10)]
    assert all(Path(path).is_relative_to(tmp_path / "work") for (path,) in made)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
