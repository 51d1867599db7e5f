"""`UnifiedSegmentation` takes the place of nipype's ``spm.NewSegment``: compared with that class itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nipype import Node, Workflow
from nipype.interfaces.base import isdefined
from nipype.interfaces.spm import NewSegment
from nipype.interfaces.utility import IdentityInterface

from iqtflow.interfaces.spm import UnifiedSegmentation


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return a folder with two images and priors, by name only: nothing is read here."""
    monkeypatch.chdir(tmp_path)
    for name in ("sub-01_T1w.nii", "sub-02_T1w.nii", "TPM.nii"):
        (tmp_path / name).touch()
    return tmp_path


def tissues(*flags):
    gaussians = (1, 1, 2, 3)
    return [(("TPM.nii", i + 1), gaussians[i], *flag) for i, flag in enumerate(flags)]


#: Settings as nipype's users write them; the first is the example of NewSegment's own documentation.
SETTINGS = {
    "its documentation": {
        "channel_info": (0.0001, 60, (True, True)),
        "tissues": tissues(
            ((True, False), (False, False)),
            ((True, True), (True, False)),
            ((False, False), (True, True)),
            ((False, False), (False, False)),
        ),
    },
    "no settings": {},
    "two images": {"channel_files": ["sub-01_T1w.nii", "sub-02_T1w.nii"]},
    "field only": {"channel_info": (0.001, 30, (True, False))},
    "inverse field": {"write_deformation_fields": [True, False]},
    "both fields": {"write_deformation_fields": [True, True], "sampling_distance": 2.0},
    "strong warping": {
        "warping_regularization": [0, 0.001, 0.5, 0.05, 0.2],
        "affine_regularization": "eastern",
    },
    "one weight": {"warping_regularization": 4.0, "affine_regularization": "none"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_same_settings_promise_the_same_files_in_the_same_outputs(folder, settings):
    settings = {"channel_files": ["sub-01_T1w.nii"], **settings}
    theirs, ours = NewSegment(**settings)._list_outputs(), UnifiedSegmentation(**settings)._list_outputs()
    assert set(theirs) == set(ours)
    for name, value in theirs.items():
        assert base_names(ours[name]) == base_names(value), name


def base_names(value):
    return [base_names(v) for v in value] if isinstance(value, list) else Path(value).name


def test_every_input_has_the_type_that_newsegment_gives_it(folder):
    theirs, ours = (
        {name: type(inputs.trait(name).trait_type) for name in NewSegment().inputs.copyable_trait_names()}
        for inputs in (NewSegment().inputs, UnifiedSegmentation().inputs)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("channel_info", (0.001, 60)),
        ("tissues", [(("TPM.nii", 1), 2, (True, False))]),
        ("affine_regularization", "martian"),
        ("write_deformation_fields", [True]),
        ("channel_files", "gone.nii"),
    ],
)
def test_what_newsegment_refuses_is_refused(folder, name, wrong):
    for interface in (NewSegment(), UnifiedSegmentation()):
        with pytest.raises(Exception, match=name):
            setattr(interface.inputs, name, wrong)


def test_a_workflow_written_for_newsegment_connects_to_it_unchanged(folder):
    """Every output that such a workflow may use is connected, and every input set from another node."""
    source = Node(IdentityInterface(["image", "distance"]), name="source")
    sink = Node(IdentityInterface(sorted(NewSegment.output_spec().copyable_trait_names())), name="sink")
    segment = Node(UnifiedSegmentation(), name="segment")
    workflow = Workflow("w", base_dir=str(folder))
    workflow.connect(
        [
            (source, segment, [("image", "channel_files"), ("distance", "sampling_distance")]),
            (segment, sink, [(n, n) for n in sorted(NewSegment.output_spec().copyable_trait_names())]),
        ]
    )
    assert len(workflow.list_node_names()) == 3
    assert not isdefined(segment.inputs.channel_files)


def test_outputs_are_lists_of_lists_by_tissue_as_code_that_indexes_them_expects(folder):
    outputs = UnifiedSegmentation(channel_files=["sub-01_T1w.nii", "sub-02_T1w.nii"])._list_outputs()
    assert np.shape(outputs["native_class_images"]) == (5, 2)
    assert outputs["native_class_images"][1][0].endswith("c2sub-01_T1w.nii")
