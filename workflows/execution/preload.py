"""What nodes that run in a process of their own import, imported once, where processes are forked from."""

import matplotlib
import nibabel
import nipype.interfaces.utility
import nipype.pipeline.engine
import scipy.ndimage  # noqa: F401

import iqtflow.cli.main
import iqtflow.interfaces.conform
import iqtflow.interfaces.enhance
import iqtflow.interfaces.patches
import iqtflow.interfaces.report
import iqtflow.interfaces.segmentation
import iqtflow.interfaces.simulate
import iqtflow.interfaces.sink
import iqtflow.interfaces.train
import iqtflow.reports.assemble.subject

__all__ = ["iqtflow", "matplotlib", "nibabel", "nipype"]
