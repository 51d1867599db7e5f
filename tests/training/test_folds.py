"""In a cross-validation each subject is judged once, by a model that has never seen it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqtflow.training.folds import FINAL, deal_folds, read_folds, write_folds
from iqtflow.training.split import SPLIT_PARTS
from iqtflow.utils.errors import UsageError


@settings(max_examples=40)
@given(more=st.integers(0, 28), folds=st.integers(2, 12), seed=st.integers(0, 2**31 - 1))
def test_each_subject_is_judged_once_and_trains_all_other_folds(more, folds, seed):
    labels = [f"{i}" for i in range(max(folds, 4) + more)]
    dealt = deal_folds(labels, folds=folds, seed=seed)
    final = dealt.pop(FINAL)
    assert list(dealt) == [f"fold-{i}" for i in range(1, folds + 1)]
    judged = [label for split in dealt.values() for label in split["evaluation"]]
    assert sorted(judged) == sorted(labels)
    sizes = [len(split["evaluation"]) for split in dealt.values()]
    assert max(sizes) - min(sizes) <= 1
    for split in (*dealt.values(), final):
        assert sorted(label for part in SPLIT_PARTS for label in split[part]) == sorted(labels)
        assert split["train"] and split["validation"]
        rest = len(split["train"]) + len(split["validation"])
        assert abs(len(split["validation"]) - rest * 3 / 15) <= 1
    assert not final["evaluation"]


def test_the_seed_decides_the_folds_and_the_order_of_the_labels_does_not():
    labels = [f"{i:02d}" for i in range(20)]
    dealt = deal_folds(labels, folds=5, seed=0)
    assert deal_folds(labels[::-1], folds=5, seed=0) == dealt != deal_folds(labels, folds=5, seed=1)


@pytest.mark.parametrize(("folds", "n", "fewest"), [(5, 4, 5), (3, 2, 3), (2, 3, 4), (2, 0, 4)])
def test_too_few_subjects_are_counted(folds, n, fewest):
    with pytest.raises(UsageError) as caught:
        deal_folds([f"{i}" for i in range(n)], folds=folds, seed=0)
    for named in (f"--cross-validation {folds}", f"found {n} ", f"at least {fewest}"):
        assert named in str(caught.value)


def test_a_ratio_without_training_subjects_is_named_as_it_was_given():
    with pytest.raises(UsageError, match="--split-ratio: found 0 1 7"):
        deal_folds(["1", "2", "3", "4"], folds=2, seed=0, ratio=(0, 1, 7))


@pytest.mark.parametrize(("folds", "n"), [(2, 4), (3, 3), (5, 5)])
def test_the_fewest_subjects_are_enough(folds, n):
    assert len(deal_folds([f"{i}" for i in range(n)], folds=folds, seed=0)) == folds + 1


def test_stored_folds_come_back(tmp_path):
    dealt = deal_folds(["1", "2", "3", "4"], folds=2, seed=0)
    write_folds(tmp_path / "folds.json", dealt)
    assert read_folds(tmp_path / "folds.json", folds=2) == dealt


@pytest.mark.parametrize(
    ("fold", "change", "named"),
    [
        pytest.param("fold-1", {"train": ["1", "2", "3"]}, "more than once", id="leak"),
        pytest.param("fold-2", {"evaluation": []}, "other subjects in", id="judged by no model"),
        pytest.param("fold-1", {"evaluation": ["1", "2", "3", "4"], "train": ["5"]}, "", id="judged twice"),
        pytest.param("fold-2", None, "fold-1, fold-2, final", id="missing"),
        pytest.param("fold-2", {"validation": []}, "no subject for validation in fold-2", id="no validation"),
    ],
)
def test_stored_folds_that_cannot_be_trusted_are_refused(tmp_path, fold, change, named):
    file = tmp_path / "folds.json"
    write_folds(file, deal_folds(["1", "2", "3", "4"], folds=2, seed=0))
    stored = json.loads(file.read_text())
    stored[fold] = change and {**stored[fold], **change}
    file.write_text(json.dumps({name: lists for name, lists in stored.items() if lists}))
    with pytest.raises(UsageError, match=r"folds\.json") as caught:
        read_folds(file, folds=2)
    assert named in str(caught.value)
