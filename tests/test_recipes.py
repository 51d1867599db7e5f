"""The recipes of other package managers, and the records of a release, agree with setup.cfg."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_packaging import ROOT, SETUP, listed

import iqtflow

RECIPES = ROOT / "recipes"
#: Names on conda-forge that differ from those of the Python packages.
CONDA = {"matplotlib-base": "matplotlib", "pytorch": "torch"}
#: What a licence of a library may be named after: each may be used by a program under Apache-2.0.
ALLOWED = [line for line in (RECIPES / "licences-allowed.txt").read_text().splitlines() if line[:1] != "#"]


def read_yaml(name: str) -> dict:
    return yaml.safe_load((RECIPES / name).read_text())


def requirements() -> dict[str, str]:
    """What setup.cfg needs: the limits of versions by the name of the package."""
    needs = map(Requirement, listed("options", "install_requires"))
    return {need.name: str(need.specifier) for need in needs}


def test_all_recipes_are_of_this_version():
    apptainer = (RECIPES / "iqtflow.def").read_text()
    assert f"image.version {iqtflow.__version__}\n" in apptainer
    assert read_yaml("neurodesk.yaml")["version"] == iqtflow.__version__
    assert read_yaml("recipe.yaml")["context"]["version"] == iqtflow.__version__


def test_the_conda_package_needs_what_setup_cfg_needs():
    recipe = read_yaml("recipe.yaml")
    python, *rest = recipe["requirements"]["run"]
    needs = {CONDA.get(name, name): limit for name, limit in (line.split() for line in rest)}
    assert needs == requirements()
    assert python.startswith("python >=")
    assert f">={recipe['context']['python_min']}" == SETUP["options"]["python_requires"]


@pytest.mark.parametrize("kind", ["conda", "Neurodesk"])
def test_a_recipe_offers_every_command(kind):
    commands = listed("options.entry_points", "console_scripts")
    if kind == "conda":
        assert read_yaml("recipe.yaml")["build"]["python"]["entry_points"] == commands
    else:
        assert read_yaml("neurodesk.yaml")["deploy"]["bins"] == [line.split(" = ")[0] for line in commands]


def test_containers_are_built_with_the_tested_torch():
    pin = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group()
    for name in ("iqtflow.def", "neurodesk.yaml"):
        lines = (RECIPES / name).read_text().splitlines()
        assert any("pip install" in line and line.endswith(f" {pin}") for line in lines), name


def test_the_apptainer_definition_copies_what_the_docker_image_copies():
    copied = re.findall(r"^    (\S+) /opt/src/\1$", (RECIPES / "iqtflow.def").read_text(), re.MULTILINE)
    wanted = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(wanted)


def test_citation_and_zenodo_record_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    record = json.loads((ROOT / ".zenodo.json").read_text())
    for ours, theirs in (("title", "title"), ("version", "version"), ("license", "license")):
        assert str(citation[ours]) == record[theirs]
    assert citation["keywords"] == record["keywords"]
    assert citation["abstract"] == record["description"]
    assert [author["name"] for author in citation["authors"]] == [one["name"] for one in record["creators"]]
    paper = citation["preferred-citation"]["identifiers"][0]["value"]
    assert [one["identifier"] for one in record["related_identifiers"]] == [paper]
    assert record["license"] == SETUP["metadata"]["license"]


def test_every_library_has_a_licence_that_allows_its_use():
    """The table lists those, too, that other libraries install (`.ci/recipes` makes it)."""
    table = (RECIPES / "licences.md").read_text()
    rows = re.findall(r"^\| (\S+) +\| \S+ +\| (.+?) +\|$", table, re.MULTILINE)
    licences = {canonicalize_name(name): licence for name, licence in rows if set(name) != {"-"}}
    assert licences.pop("name") == "License"
    assert set(map(canonicalize_name, requirements())) - set(licences) <= {"tomli"}
    assert [name for name, text in licences.items() if not any(word in text for word in ALLOWED)] == []
