"""No subject is judged that was trained on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqtflow.training.split import SPLIT_PARTS, draw_split, keep_split, read_split
from iqtflow.utils.errors import UsageError


def test_a_split_names_its_subjects_with_or_without_prefix(tmp_path):
    (tmp_path / "split.json").write_text(
        '{"train": ["sub-01", "02"], "validation": ["03"], "evaluation": []}'
    )
    assert read_split(tmp_path / "split.json") == {
        "train": ("01", "02"),
        "validation": ("03",),
        "evaluation": (),
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param(
            '{"train": ["01", "02"], "validation": ["03"], "evaluation": ["sub-01"]}',
            "sub-01 more than once",
            id="leak",
        ),
        pytest.param(
            '{"train": ["01"], "evaluation": ["02"]}', "found no list validation;", id="list missing"
        ),
        pytest.param(
            '{"train": ["01"], "validation": [], "evaluation": []}', "no subject for validation", id="empty"
        ),
        pytest.param(
            '{"train": 1, "validation": 2, "evaluation": 3}', "1 under train, not a list", id="no lists"
        ),
        pytest.param('["01"]', "found no object with three lists;", id="no object"),
        pytest.param("{", "found no JSON", id="no JSON"),
        pytest.param(
            '{"train": "01", "validation": ["2"], "evaluation": []}',
            '"01" under train, not a list',
            id="text",
        ),
        pytest.param('{"train": [1], "validation": ["2"], "evaluation": []}', "1 under train", id="number"),
        pytest.param('{"train": ["../x"], "validation": ["2"], "evaluation": []}', "'../x'", id="path"),
    ],
)
def test_a_split_that_cannot_be_trusted_is_refused(tmp_path, text, named):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_split(tmp_path / "split.json")
    assert named in str(caught.value)


def test_thirty_subjects_are_split_as_in_the_paper():
    labels = [f"{i:02d}" for i in range(30)]
    split = draw_split(labels, seed=0)
    assert [len(split[part]) for part in SPLIT_PARTS] == [12, 3, 15]
    assert sorted(label for part in SPLIT_PARTS for label in split[part]) == labels
    assert draw_split(labels[::-1], seed=0) == split != draw_split(labels, seed=1)


@given(n=st.integers(2, 60), ratio=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 20)))
def test_whatever_is_drawn_everybody_is_on_one_side_and_no_side_is_empty(n, ratio):
    labels = [f"{i}" for i in range(n)]
    split = draw_split(labels, seed=3, ratio=ratio)
    assert sorted(label for part in SPLIT_PARTS for label in split[part]) == sorted(labels)
    assert split["train"] and split["validation"]
    assert bool(split["evaluation"]) == (ratio[2] > 0 and n > 2)
    for part, share in zip(SPLIT_PARTS, ratio, strict=True):
        assert abs(len(split[part]) - n * share / sum(ratio)) <= 2


def test_a_split_that_was_drawn_is_the_split_of_later_runs(tmp_path):
    """A subject that arrives later must not turn an evaluation subject into a training subject."""
    first = keep_split(tmp_path / "models/split.json", ["1", "2", "3", "4"], seed=0)
    assert keep_split(tmp_path / "models/split.json", ["1", "2", "3", "4", "5"], seed=1) == first
    assert read_split(tmp_path / "models/split.json") == first


@pytest.mark.parametrize(
    ("labels", "ratio"), [(["1"], (12, 3, 15)), (["1", "2"], (0, 1, 1)), ([], (1, 1, 1))]
)
def test_what_cannot_be_split_is_refused(labels, ratio):
    with pytest.raises(UsageError):
        draw_split(labels, seed=0, ratio=ratio)
