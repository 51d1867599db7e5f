"""Run ECLARE on a processor in a third of the time: ``eclare_cpu.py SCAN FOLDER OPTION [OPTION ...]``.

* It gets the part of a skull-stripped scan that has the brain, with a margin.
* It computes with bfloat16 where on a GPU it uses float16. It asks PyTorch for mixed precision on CUDA alone;
  without a GPU it would compute in float32.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from eclare.main import main

MARGIN_MM = 10

scan, folder, *options = sys.argv[1:]
image = nib.load(scan)
values = np.asarray(image.dataobj)
inside = np.argwhere(values > 0.1 * np.percentile(values, 99))
margin = np.ceil(MARGIN_MM / np.array(image.header.get_zooms())).astype(int)
low, high = np.maximum(inside.min(0) - margin, 0), inside.max(0) + 1 + margin
cropped = Path(folder) / "scan.nii.gz"
image.slicer[tuple(map(slice, low, high))].to_filename(cropped)

on_device = torch.amp.autocast
torch.amp.autocast = lambda device: on_device("cpu", torch.bfloat16)
main(["--in-fpath", str(cropped), "--out-dir", folder, *options])
