"""Public names are imported when they are used, and importing the package loads nothing heavy."""

from __future__ import annotations

import pytest
from clinics import python

import iqtflow
import iqtflow.interfaces
import iqtflow.workflows

PACKAGES = (iqtflow, iqtflow.interfaces, iqtflow.workflows)


def test_importing_the_package_loads_neither_torch_nor_nipype():
    code = (
        "import sys, iqtflow, iqtflow.interfaces, iqtflow.workflows\n"
        "print([name for name in ('torch', 'nipype', 'nibabel', 'ants') if name in sys.modules])\n"
        "from iqtflow.interfaces import EnhanceVolume\n"
        "from iqtflow.workflows import init_enhance_wf\n"
        "print(EnhanceVolume.__name__, init_enhance_wf.__name__, 'torch' in sys.modules)"
    )
    run = python("-c", code, check=True)
    assert run.stdout.split("\n")[:2] == ["[]", "EnhanceVolume init_enhance_wf False"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_is_there_and_no_other(package):
    assert package.__all__
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
        assert getattr(package, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        package.Nothing  # noqa: B018
