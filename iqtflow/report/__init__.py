"""Pages that people look at: one per subject, one for the data set, one for a training."""

from __future__ import annotations

from iqtflow.report.dataset import write_index_page, write_pages
from iqtflow.report.group import write_group_page
from iqtflow.report.rebuild import rebuild
from iqtflow.report.subject import write_subject_page

__all__ = ["rebuild", "write_group_page", "write_index_page", "write_pages", "write_subject_page"]
