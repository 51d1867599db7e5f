"""How much memory the steps take, by the size of the image: what nodes tell their schedulers.

Measured by ``benchmarks/bench_memory.py`` as the largest resident memory of each step's process over volumes
of 0.3 to 7 million voxels, with a tenth to spare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Voxels that are assumed of an image whose header cannot be read: 256 x 256 x 256.
UNKNOWN_VOXELS = 1 << 24


@dataclass(frozen=True)
class Footprint:
    """Memory of a step: `base_gb`, and `voxel_bytes` for each voxel of its image."""

    base_gb: float
    voxel_bytes: float

    def gb(self, voxels: int) -> float:
        """Memory (GB) over an image of so many voxels."""
        return round(self.base_gb + self.voxel_bytes * voxels / 1e9, 2)


#: By module of the command, or name of the node.
CONFORM = Footprint(0.15, 10)
SIMULATE = Footprint(0.32, 16)
EXTRACT = Footprint(0.15, 45)
MEASURE = Footprint(0.15, 28)
READY_MADE = Footprint(0.15, 62)
#: The embedded engine on one thread.
ANTS = Footprint(0.6, 160)
#: SPM under Octave: 0.7 GB for a head of 1 mm, 2 GB for one of 0.7 mm.
SPM = Footprint(0.3, 85)
#: A scan through networks in tiles of the training patch, for each voxel of the thin-slice volume.
ENHANCE = Footprint(0.75, 60)
#: Besides that, where the brain has to be found in a head.
BRAIN_MASK_GB = 1.0
#: Besides that, what CUDA takes of the machine's own memory.
CUDA_GB = 2.5


#: Memory of one pass of the paper's networks in bytes for each thin-slice voxel: for each channel of the
#: first level, and besides. Measured in float32 with ANISO U-Net on a CPU, channels last: 442 bytes at 16
#: channels, 208 at 8; bfloat16 takes `HALF_SHARE` of what goes with the channels (148 bytes in all at 12).
BYTES_PER_CHANNEL, BYTES_BESIDES, HALF_SHARE = 27, 24, 0.45


def pass_bytes(card: Mapping[str, Any], *, precision: str) -> float:
    """Memory of one pass of a network, in bytes for each thin-slice voxel.

    Parameters
    ----------
    card
        Of the model. ``pass_bytes`` in it, by precision, is what the network says of itself; the paper's
        networks follow from their width.
    precision
        "float32" or "bfloat16".
    """
    if "pass_bytes" in card:
        return float(card["pass_bytes"][precision])
    channels = int(card["network"]["kwargs"].get("filters", 16))
    half = HALF_SHARE if precision == "bfloat16" else 1.0
    return half * BYTES_PER_CHANNEL * channels + BYTES_BESIDES


def training_gb(*, batch_size: int, filters: int, patch_voxels: int = 32**3) -> float:
    """Memory (GB) of a training: the libraries are mapped, so that the batch decides."""
    return round(0.6 + batch_size * patch_voxels * TRAINING_CHANNEL_BYTES * filters / 1e9, 2)


#: Bytes that a training step holds for each voxel of its batch and each channel of the first level.
TRAINING_CHANNEL_BYTES = 135
