"""Replace ``nipype.interfaces.spm.NewSegment`` by UnifiedSegmentation: the same graph, without MATLAB.

    python without_matlab.py T1w.nii.gz WORK_DIR [SAMPLING_MM]

Prints the volumes of grey matter, white matter and cerebrospinal fluid in ml.
"""

from __future__ import annotations

import os
import sys

from nipype.interfaces.utility import Function, IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from iqtflow.interfaces import UnifiedSegmentation


def measure(native_class_images: list[list[str]]) -> list[float]:
    """Return the volume (ml) of the first three classes."""
    import nibabel as nib
    import numpy as np

    volumes = []
    for (path,) in native_class_images[:3]:
        image = nib.load(path)
        voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        volumes.append(round(float(image.get_fdata().sum() * voxel_ml), 1))
    return volumes


def init_volumes_wf(segment, name: str = "volumes") -> Workflow:
    """Build the graph around an interface: ``NewSegment()`` of nipype, or UnifiedSegmentation."""
    inputnode = Node(IdentityInterface(["t1w"]), name="inputnode")
    outputnode = Node(IdentityInterface(["volumes_ml", "bias_corrected"]), name="outputnode")

    segmentation = Node(segment, name="segment", mem_gb=2)
    segmentation.inputs.channel_info = (0.001, 60.0, (False, True))
    volumes = Node(Function(["native_class_images"], ["volumes_ml"], measure), name="measure")

    workflow = Workflow(name=name)
    workflow.connect(
        [
            (inputnode, segmentation, [("t1w", "channel_files")]),
            (segmentation, volumes, [("native_class_images", "native_class_images")]),
            (segmentation, outputnode, [("bias_corrected_images", "bias_corrected")]),
            (volumes, outputnode, [("volumes_ml", "volumes_ml")]),
        ]
    )
    return workflow


def main(t1w: str, work_dir: str, sampling_mm: str = "3") -> None:
    """Run the graph. SPM under Octave is found as in ``iqtflow --doctor``; .nii.gz files work as they are."""
    workflow = init_volumes_wf(UnifiedSegmentation(sampling_distance=float(sampling_mm)))
    workflow.base_dir = os.path.abspath(work_dir)
    workflow.get_node("inputnode").inputs.t1w = os.path.abspath(t1w)
    nodes = {node.name: node for node in workflow.run().nodes()}
    print(*nodes["measure"].result.outputs.volumes_ml)


if __name__ == "__main__":
    main(*sys.argv[1:])
