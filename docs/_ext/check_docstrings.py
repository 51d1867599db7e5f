"""Check the docstrings of the public names with numpydoc: ``python docs/_ext/check_docstrings.py``."""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings

from numpydoc.validate import validate

import iqtflow
import iqtflow.interfaces
import iqtflow.workflows

#: Codes of numpydoc: there is a docstring; its summary starts with a capital and ends with a period; all
#: parameters are described, and no others; what is returned is described. Types are in the signature, and
#: factories of workflows have the sections Inputs and Outputs besides.
CODES = {"GL08", "SS01", "SS02", "SS03", "SS04", "PR01", "PR02", "PR03", "PR07", "RT01"}
#: Not for interfaces, whose inputs and outputs are described in their specifications.
OF_SIGNATURES = {"PR01", "PR02", "PR03", "PR07"}


def public_names() -> list[str]:
    """Return the full names of the public functions and classes."""
    packages = (iqtflow, iqtflow.interfaces, iqtflow.workflows)
    return [f"{package.__name__}.{name}" for package in packages for name in package.__all__]


def faults_of(name: str) -> list[str]:
    """Return one line for each fault of a docstring."""
    package, _, attribute = name.rpartition(".")
    found = getattr({"iqtflow": iqtflow}.get(package) or getattr(iqtflow, package.split(".")[1]), attribute)
    codes = CODES - OF_SIGNATURES if inspect.isclass(found) else CODES
    faults = validate(f"{found.__module__}.{found.__qualname__}")["errors"]
    lines = [f"{name}: {code} {text}" for code, text in faults if code in codes]
    tree = ast.parse(textwrap.dedent(inspect.getsource(found)))
    raises = not inspect.isclass(found) and any(isinstance(node, ast.Raise) for node in ast.walk(tree))
    if raises and "Raises\n" not in (found.__doc__ or ""):
        lines.append(f"{name}: no section Raises")
    return lines


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "Unknown section (Inputs|Outputs)")
    told = [line for name in public_names() for line in faults_of(name)]
    print("\n".join(told) or f"{len(public_names())} public docstrings are complete")
    raise SystemExit(bool(told))
