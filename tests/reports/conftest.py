"""Shared by the tests of pages."""

from __future__ import annotations

import pytest

from iqtflow.reports.draw import enhanced, prepared
from iqtflow.reports.draw.slices import Rung


@pytest.fixture
def small_pictures(monkeypatch):
    """Pages with one small slice for each plane: for tests in which the slices do not matter."""
    for module in (enhanced, prepared):
        monkeypatch.setattr(module, "LADDER", (Rung(1, 120, 50),))
