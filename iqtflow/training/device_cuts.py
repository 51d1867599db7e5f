"""Cutting patches of fresh draws on the GPU.

One processor core draws the parameters of 800 patches of 48 voxels a second, but cuts and resamples only 150.
A GPU trains on more. Here the volumes of all subjects are in the GPU's memory (about 40 MB a subject).
`PlaceSampler` draws as `DrawSampler` does and returns places and resampling matrices instead of patches.
`Volumes.cut` cuts the patches with them. The patches are those of `DrawSampler`, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from iqtflow.training.library import PatchLibrary
from iqtflow.training.samplers import DrawSampler

#: Patches that are cut together: the intermediate arrays take about 30 MB each.
CHUNK = 32


def volume_bytes(libraries: Sequence[PatchLibrary]) -> int:
    """Memory of the volumes of these libraries on the device."""
    return sum(5 * library.intensity.size for library in _distinct(libraries))


class Volumes:
    """The volumes of all libraries one after the other, on the device of the batches.

    Parameters
    ----------
    libraries
        Libraries of training and validation; one that is listed twice is stored once.
    """

    def __init__(self, libraries: Sequence[PatchLibrary]) -> None:
        self.first: dict[str, int] = {}  #: first voxel of each library, by its path
        total = 0
        for library in _distinct(libraries):
            self.first[str(library.path)] = total
            total += library.intensity.size
        self._arrays = [
            torch.from_numpy(np.concatenate([np.asarray(volume).ravel() for volume in volumes]))
            for volumes in zip(
                *((one.intensity, one.wm, one.gm, one.brain) for one in _distinct(libraries)), strict=True
            )
        ]

    def cut(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Replace the places of a batch of `PlaceSampler` by the patches that `DrawSampler` would cut."""
        device = batch["place"].device
        if self._arrays[0].device != device:
            self._arrays = [array.to(device) for array in self._arrays]
        matrices = [batch[f"resample{a}"] for a in range(3)]
        with torch.autocast(device.type, enabled=False):
            chunks = zip(*(x.split(CHUNK) for x in (batch["place"], *matrices)), strict=True)
            parts = [self._cut(*chunk) for chunk in chunks]
            intensity, wm, gm, brain = (torch.cat(part) for part in zip(*parts, strict=True))
            tissue = torch.stack([wm, gm], dim=1)
        patch = intensity.shape[1]
        margin = (intensity.shape[3] - patch) // 2
        return {
            **batch,
            "intensity": intensity[:, None],
            "tissue": tissue,
            "brain": brain[:, None, ..., margin : margin + patch],
        }

    def _cut(self, place: torch.Tensor, *matrices: torch.Tensor) -> list[torch.Tensor]:
        """Cut and resample boxes from each of the four volumes.

        `place` has a row for each box: the library's first voxel, then for each axis the first voxel of the
        box, the size of the library's volume and its stride. Voxels outside the volume are 0.
        """
        index = place[:, 0].reshape(-1, 1, 1, 1)
        inside = torch.ones_like(index, dtype=torch.bool)
        for axis, matrix in enumerate(matrices):
            begin, size, stride = place[:, 1 + 3 * axis : 4 + 3 * axis].split(1, dim=1)
            at = begin + torch.arange(matrix.shape[2], device=place.device)
            shape = [len(at), *(at.shape[1] if a == axis else 1 for a in range(3))]
            inside = inside & ((at >= 0) & (at < size)).reshape(shape)
            index = index + (torch.minimum(at.clamp(min=0), size - 1) * stride).reshape(shape)
        return [_resample(array[index] * inside, matrices) for array in self._arrays]


class PlaceSampler(DrawSampler):
    """`DrawSampler` whose batches have ``place`` and ``resample0`` to ``resample2`` for `Volumes.cut` instead
    of patches.

    Parameters
    ----------
    libraries, **settings
        As for `DrawSampler`.
    volumes
        The volumes of these libraries.
    """

    def __init__(self, libraries: Sequence[PatchLibrary], *, volumes: Volumes, **settings: Any) -> None:
        super().__init__(libraries, **settings)
        self._first = volumes.first
        d = self.degradation
        zoom = max(d.zoom[1] * (1 + d.spacing_jitter), 1) + 0.01  # zooms are rounded to 0.02
        #: Boxes of all patches have the same size: that of the largest zoom.
        self._widest = [int(np.ceil(n * zoom)) + 6 for n in self._sizes()]

    def _sizes(self) -> tuple[int, int, int]:
        return self.patch, self.patch, self.patch + 2 * self.margin

    def _voxels(
        self,
        library: PatchLibrary,
        corner: np.ndarray,
        axis: int,
        zooms: np.ndarray,
        turn: Sequence[bool] | None,
    ) -> dict[str, np.ndarray]:
        begin, wide, matrices = self._box(library, corner, axis, zooms)
        swap, *flips = turn or (False,) * 4
        order = [*(a for a in range(3) if a != axis), axis]  # slices last
        if swap:
            order[0], order[1] = order[1], order[0]
        shape = library.intensity.shape
        strides = (shape[1] * shape[2], shape[2], 1)
        place = [self._first[str(library.path)]]
        out: dict[str, np.ndarray] = {}
        for target, (a, n) in enumerate(zip(order, self._sizes(), strict=True)):
            place += [begin[a], shape[a], strides[a]]
            matrix = np.zeros((n, self._widest[target]), np.float32)
            matrix[:, : wide[a]] = matrices[a] if matrices else np.eye(n, dtype=np.float32)
            out[f"resample{target}"] = matrix[::-1].copy() if flips[target] else matrix
        return {"place": np.array(place, np.int64), **out}


def _resample(part: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Apply one matrix along each axis of (b, w, h, d); keep the data type and its range."""
    out = part.float()
    for matrix in matrices:  # each product moves the first axis to the end
        rest = out.shape[2:]
        out = out.flatten(2).transpose(1, 2) @ matrix.transpose(1, 2)
        out = out.reshape(len(out), *rest, -1)
    if part.dtype == torch.uint8:
        return out.round().clamp(0, 255).to(torch.uint8)
    return out.clamp(min=0).to(part.dtype)


def _distinct(libraries: Sequence[PatchLibrary]) -> list[PatchLibrary]:
    return list({str(library.path): library for library in libraries}.values())
