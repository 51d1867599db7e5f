"""How much memory the steps take, by the size of the image: what nodes tell their schedulers.

Measured by ``benchmarks/bench_memory.py`` as the largest resident memory of each step's process over volumes
of 0.3 to 7 million voxels, with a tenth to spare.
"""

from __future__ import annotations

from dataclasses import dataclass

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
