"""A model adapted to the scanner of some scans: what is simulated, who is judged, what is told."""

from __future__ import annotations

import json

import pytest
from clinics import settle, write_mapped_scans

from iqtflow.models.model_file import read_card
from iqtflow.training import adaptation
from iqtflow.workflows.app import adapt

K = 4


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Three low-field scans and five high-field people, with ready-made tissue maps."""
    root = tmp_path_factory.mktemp("site")
    for name, n, k in (("low", 3, K), ("high", 5, 1)):
        from clinics import dataset

        dataset(root / name)
        write_mapped_scans(root / name, root / f"{name}-maps", n, k=k, first=10 if k == 1 else 0)
    return root
