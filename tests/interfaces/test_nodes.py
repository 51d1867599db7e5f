"""Interfaces and workflows work in a stranger's graph; walking the packages finds new ones, too."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import pkgutil
import re
from pathlib import Path

import pytest
from nipype.interfaces.base import BaseInterface, CommandLine, File, Undefined, isdefined
from nipype.pipeline.engine import Workflow

import iqtflow.interfaces
import iqtflow.workflows
from iqtflow.cli.commands.train import build_parser
from iqtflow.config import SETTINGS, TrainSettings
from iqtflow.interfaces.train import TrainModel
from iqtflow.workflows.app.group import _training_inputs

#: Input that names a place outside of the node's folder, as nipype's own DataSink has it: storing is what an
#: interface with this input is for.
PLACE = "base_directory"


def modules(package) -> list:
    names = [f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(name) for name in names]


def each(what: str, package):
    named = [getattr(package, name) for name in package.__all__]
    return pytest.mark.parametrize(what, named, ids=lambda one: one.__name__)


each_interface, each_factory = each("interface", iqtflow.interfaces), each("factory", iqtflow.workflows)
#: Settings of training that are inputs of the node; its tensorboard is a folder.
SHARED = (SETTINGS["train"].keys() - {"tensorboard"}) & set(TrainModel().inputs.copyable_trait_names())


def own_traits(spec) -> dict:
    """Traits of a specification, without the machinery of the traits library."""
    return {name: trait for name, trait in spec.traits().items() if not name.startswith("trait_")}


def test_the_spacing_of_an_interpolated_scan_reaches_the_command(tmp_path):
    workflow = iqtflow.workflows.init_enhance_wf(acquired_spacing=5.5, acquired_axis="y")
    node = workflow.get_node("enhance")
    node.inputs.in_file = __file__
    assert "--acquired-axis y --acquired-spacing 5.5" in node.interface.cmdline
    node.inputs.acquired_spacing = Undefined
    assert "--acquired-spacing" not in node.interface.cmdline


@pytest.mark.parametrize("package", [iqtflow.interfaces, iqtflow.workflows], ids=lambda one: one.__name__)
def test_every_interface_and_every_factory_is_a_public_name(package):
    """Not those that others are made from: the base of commands, the node of the segmentation."""
    found = {
        name
        for module in modules(package)
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
        if name.startswith("init_") or (inspect.isclass(value) and issubclass(value, BaseInterface))
    }
    assert found - {"ChildCommand", "init_segment_node"} == set(package.__all__)


# --- interfaces ---


@each_interface
def test_every_input_and_output_is_described(interface):
    specs = [interface().inputs] + ([interface.output_spec()] if interface.output_spec else [])
    silent = [
        name for spec in specs for name, trait in own_traits(spec).items() if not (trait.desc or "").strip()
    ]
    assert silent == []


@each_interface
def test_help_is_readable(interface):
    text = interface.help(returnhelp=True)
    assert len((interface.__doc__ or "").split()) >= 5
    assert "[Mandatory]" in text or "[Optional]" in text
    assert "traits." not in text and "<undefined>" not in text.split("Outputs")[0]


@each_interface
def test_no_gpu_is_taken_unasked_and_none_enters_the_cache_key(interface):
    inputs = interface().inputs
    for name in ("use_gpu", "use_cuda"):
        if name in own_traits(inputs):
            assert getattr(inputs, name) is False
            assert inputs.trait(name).nohash


@each_interface
def test_interfaces_and_their_specifications_travel_between_processes(interface):
    one = interface()
    there = pickle.loads(pickle.dumps(one))
    assert type(there) is interface
    assert there.inputs.get() == one.inputs.get()
    for spec in (interface.input_spec, interface.output_spec):
        if spec is not None:
            assert pickle.loads(pickle.dumps(spec)) is spec


@each_interface
def test_nothing_has_to_be_said_about_places_outside_of_the_node_s_folder(interface, tmp_path):
    inputs = interface().inputs
    for name, trait in own_traits(inputs).items():
        place = isinstance(trait.trait_type, File) and not trait.exists
        if place and isdefined(getattr(inputs, name)):
            assert not os.path.isabs(getattr(inputs, name)), name
        if name.endswith(("_dir", "_directory", "directory")) and trait.mandatory:
            assert name == PLACE


@each_interface
def test_what_a_command_writes_by_default_is_in_the_node_s_folder(interface, tmp_path, monkeypatch):
    if not issubclass(interface, CommandLine):
        pytest.skip("the folder of its outputs is the one that it runs in")
    monkeypatch.chdir(tmp_path)
    outputs = interface()._list_outputs()
    assert outputs
    for path in outputs.values():
        assert Path(path).parent == tmp_path


def test_interfaces_take_defaults_from_the_table_of_settings_and_know_no_run():
    for module in modules(iqtflow.interfaces):
        source = Path(module.__file__).read_text()
        assert not re.search(r"\b(Settings|read_settings)\b", source), module.__name__
        assert "iqtflow.workflows" not in source, module.__name__


@pytest.mark.parametrize("name", sorted(SHARED))
def test_a_setting_of_training_is_the_same_in_the_table_the_node_and_its_command(name):
    item, inputs = SETTINGS["train"][name], TrainModel().inputs
    value = getattr(inputs, name)
    assert value == item.default if isdefined(value) else item.default in (None, (), "fresh")
    given = TrainSettings(steps=9, start_from="iqt-k4", network_options=("a=1",))
    assert name in ("devices", "num_nodes") or _training_inputs(given)[name] is not None
    option = next(action for action in build_parser()._actions if action.dest == name)
    assert tuple(option.default) == () if name == "network_options" else option.default == item.default


# --- workflows ---


@each_factory
def test_every_factory_builds_with_its_defaults_under_any_name(factory):
    workflow = factory(name="strange")
    assert isinstance(workflow, Workflow)
    assert workflow.name == "strange"
    assert workflow.get_node("inputnode") is not None
    assert workflow.get_node("outputnode") is not None


@each_factory
def test_every_factory_takes_plain_keyword_arguments_and_says_what_they_are(factory):
    parameters = inspect.signature(factory).parameters
    documented = inspect.getdoc(factory)  # without indentation, which Python 3.13 removes
    for name, parameter in parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name
        assert parameter.default is not inspect.Parameter.empty, name
        assert "Settings" not in str(parameter.annotation), name
        assert re.search(rf"^(\w+, )*{name}(, \w+)*$", documented, re.MULTILINE), f"{name} is not described"
    for section in ("Workflow Graph", "Parameters", "Inputs", "Outputs"):
        assert re.search(rf"^{section}$", documented, re.MULTILINE), section


@each_factory
def test_inputs_and_outputs_of_every_factory_are_described_by_their_names(factory):
    workflow = factory()
    sections = re.split(r"^(Inputs|Outputs|Raises)\n-+\n", inspect.getdoc(factory), flags=re.MULTILINE)
    described = dict(zip(sections[1::2], sections[2::2], strict=True))
    for node, section in (("inputnode", "Inputs"), ("outputnode", "Outputs")):
        names = set(workflow.get_node(node).inputs.copyable_trait_names())
        listed = {
            name
            for line in re.findall(r"^(\w[\w, .]*)$", described[section], re.MULTILINE)
            for name in re.split(r", ", line)
        }
        # "draw01, draw02, ..." stands for a family.
        families = tuple(re.sub(r"\d+.*", "", name) for name in listed if re.search(r"\d", name))
        assert {name for name in names - listed if not (families and name.startswith(families))} == set()
        assert {
            name for name in listed - names if re.match(r"\w+$", name) and not re.search(r"\d", name)
        } == set()


@each_factory
def test_no_factory_stores_anything_itself(factory):
    for node in factory()._get_all_nodes():
        assert not hasattr(node.inputs, PLACE)
        assert node.base_dir is None


@each_factory
def test_graphs_travel_to_the_nodes_of_a_cluster(factory):
    assert pickle.loads(pickle.dumps(factory())).list_node_names() == factory().list_node_names()


@each_factory
def test_nodes_that_compute_say_what_they_take(factory):
    for node in factory()._get_all_nodes():
        if isinstance(node.interface, CommandLine):
            assert node._mem_gb is not None and node.n_procs >= 1
        if getattr(node.inputs, "use_gpu", False) is True:
            raise AssertionError(f"{node.fullname} takes a GPU unasked")
