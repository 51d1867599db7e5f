"""No subject is judged that was trained on."""

from __future__ import annotations

import pytest

from iqtflow.errors import UsageError
from iqtflow.split import read_split


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
        pytest.param('{"train": ["01"], "evaluation": ["02"]}', "validation", id="list missing"),
        pytest.param(
            '{"train": ["01"], "validation": [], "evaluation": []}', "no subject for validation", id="empty"
        ),
        pytest.param('{"train": 1, "validation": 2, "evaluation": 3}', "TypeError", id="no lists"),
        pytest.param('["01"]', "TypeError", id="no object"),
        pytest.param("{", "JSONDecodeError", id="no JSON"),
    ],
)
def test_a_split_that_cannot_be_trusted_is_refused(tmp_path, text, named):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_split(tmp_path / "split.json")
    assert named in str(caught.value)
