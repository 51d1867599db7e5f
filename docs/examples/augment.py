"""Use the simulator in an augmentation pipeline: many low-field versions of one high-field image.

    python augment.py T1w.nii.gz WM.nii.gz GM.nii.gz WORK_DIR [N]

Prints the names of the images.
"""

from __future__ import annotations

import os
import sys

from nipype.interfaces.utility import Function, IdentityInterface
from nipype.pipeline.engine import MapNode, Node, Workflow

from iqtflow.interfaces import SimulateLowField


def stretch_contrast(in_file: str, seed: int) -> str:
    """Apply a gamma between 0.8 and 1.25. Replace this function by your own augmentation."""
    import os

    import nibabel as nib
    import numpy as np

    image = nib.load(in_file)
    data = np.clip(image.get_fdata(dtype=np.float32), 0, None)
    gamma = 1.25 ** np.random.default_rng(seed).uniform(-1, 1)
    data = data.max() * (data / data.max()) ** gamma
    out_file = os.path.abspath("augmented.nii.gz")
    nib.Nifti1Image(data.astype(np.float32), image.affine).to_filename(out_file)
    return out_file


def init_augment_wf(n: int = 4, name: str = "augment") -> Workflow:
    """Build the graph: n draws of the simulator; each goes through `stretch_contrast`."""
    inputnode = Node(IdentityInterface(["in_file", "wm_file", "gm_file"]), name="inputnode")
    outputnode = Node(IdentityInterface(["images", "drawn"]), name="outputnode")

    # The simulator needs one seed for each draw: SNR and noise follow from it.
    simulate = MapNode(
        SimulateLowField(upsampling_factor=4, bias_amplitude=0.2),
        iterfield=["seed", "slice_axis"],
        name="simulate",
        mem_gb=1.5,
    )
    simulate.inputs.seed = list(range(1, n + 1))
    simulate.inputs.slice_axis = [("x", "y", "z")[i % 3] for i in range(n)]

    stretch = MapNode(
        Function(["in_file", "seed"], ["out_file"], stretch_contrast),
        iterfield=["in_file", "seed"],
        name="stretch",
    )
    stretch.inputs.seed = list(range(1, n + 1))

    workflow = Workflow(name=name)
    workflow.connect(
        [
            (inputnode, simulate, [(field, field) for field in ("in_file", "wm_file", "gm_file")]),
            (simulate, stretch, [("out_file", "in_file")]),
            (simulate, outputnode, [("metadata_file", "drawn")]),
            (stretch, outputnode, [("out_file", "images")]),
        ]
    )
    return workflow


def main(image: str, wm: str, gm: str, work_dir: str, n: str = "4") -> None:
    """Run the graph."""
    workflow = init_augment_wf(int(n))
    workflow.base_dir = os.path.abspath(work_dir)
    given = workflow.get_node("inputnode").inputs
    given.in_file, given.wm_file, given.gm_file = (os.path.abspath(path) for path in (image, wm, gm))
    graph = workflow.run()
    stretched = next(node for node in graph.nodes() if node.name == "stretch")
    print(*stretched.result.outputs.out_file, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
