"""Enhance a clinical scan before the first steps of an anatomical pipeline (as in sMRIPrep).

A pipeline for isotropic images can then work with it.

    python enhance_first.py SCAN.nii.gz WORK_DIR [MODEL]

Prints the names of the bias-corrected image and of the standard deviation, if the model has one.
"""

from __future__ import annotations

import os
import sys

from nipype.interfaces.utility import Function, IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from iqtflow.workflows import init_enhance_wf


def reorient(in_file: str) -> str:
    """Turn the axes to right, anterior, superior: sMRIPrep's `Conform`."""
    import os

    import nibabel as nib

    out_file = os.path.abspath("ras.nii.gz")
    nib.as_closest_canonical(nib.load(in_file)).to_filename(out_file)
    return out_file


def clip(in_file: str) -> str:
    """Clip the tails of the histogram: sMRIPrep's `IntensityClip`."""
    import os

    import nibabel as nib
    import numpy as np

    image = nib.load(in_file)
    data = image.get_fdata(dtype=np.float32)
    low, high = np.percentile(data[data > 0], (2, 99.8))
    out_file = os.path.abspath("clipped.nii.gz")
    nib.Nifti1Image(np.clip(data, low, high), image.affine, image.header).to_filename(out_file)
    return out_file


def correct_bias(in_file: str) -> str:
    """Remove the bias field: sMRIPrep's `N4BiasFieldCorrection`."""
    import os

    import ants

    out_file = os.path.abspath("unbiased.nii.gz")
    corrected = ants.n4_bias_field_correction(
        ants.image_read(in_file), shrink_factor=4, convergence={"iters": [20, 20], "tol": 1e-6}
    )
    ants.image_write(corrected, out_file)
    return out_file


def init_anatomical_wf(model: str | None = None, name: str = "anatomical") -> Workflow:
    """Build the graph: enhance, then the first steps of a pipeline."""
    inputnode = Node(IdentityInterface(["t1w", "sidecar"]), name="inputnode")
    inputnode.inputs.sidecar = {}
    outputnode = Node(IdentityInterface(["t1w_preproc", "uncertainty", "details"]), name="outputnode")

    enhance = init_enhance_wf(model=model, omp_nthreads=1, mem_gb=4)
    ras = Node(Function(["in_file"], ["out_file"], reorient), name="reorient")
    clipped = Node(Function(["in_file"], ["out_file"], clip), name="clip")
    n4 = Node(Function(["in_file"], ["out_file"], correct_bias), name="n4", mem_gb=2)

    workflow = Workflow(name=name)
    workflow.connect(
        [
            (inputnode, enhance, [("t1w", "inputnode.in_file"), ("sidecar", "inputnode.sidecar")]),
            (enhance, ras, [("outputnode.enhanced", "in_file")]),
            (ras, clipped, [("out_file", "in_file")]),
            (clipped, n4, [("out_file", "in_file")]),
            (n4, outputnode, [("out_file", "t1w_preproc")]),
            # Keep the standard deviation: later results are not better than the enhanced volume.
            (enhance, outputnode, [("outputnode.std", "uncertainty"), ("outputnode.details", "details")]),
        ]
    )
    return workflow


def main(scan: str, work_dir: str, model: str | None = None) -> None:
    """Run the graph."""
    workflow = init_anatomical_wf(model and os.path.abspath(model))
    workflow.base_dir = os.path.abspath(work_dir)
    workflow.get_node("inputnode").inputs.t1w = os.path.abspath(scan)
    nodes = {node.name: node for node in workflow.run().nodes()}
    print(nodes["n4"].result.outputs.out_file)
    print(nodes["enhance"].result.outputs.std_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
