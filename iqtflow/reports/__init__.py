"""Pages that people look at: one per subject, one for the data set, one for a training."""

from __future__ import annotations

from iqtflow.reports.assemble.group import write_group_page
from iqtflow.reports.assemble.index import write_index_page, write_pages
from iqtflow.reports.assemble.rebuild import rebuild
from iqtflow.reports.assemble.subject import write_subject_page

__all__ = ["rebuild", "write_group_page", "write_index_page", "write_pages", "write_subject_page"]
