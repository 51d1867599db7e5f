"""BIDS: which images to process, and the names and sidecars of what is written."""

from iqtflow.bids.names import derivative_name, scan_seed
from iqtflow.bids.scans import Scan, check_dataset, find_scans, list_subjects, read_entities
from iqtflow.bids.sidecars import check_owner, write_dataset_description, write_sidecar

__all__ = [
    "Scan",
    "check_dataset",
    "check_owner",
    "derivative_name",
    "find_scans",
    "list_subjects",
    "read_entities",
    "scan_seed",
    "write_dataset_description",
    "write_sidecar",
]
