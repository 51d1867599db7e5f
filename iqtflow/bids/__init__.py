"""BIDS: find images, name outputs, read and write sidecars."""

from iqtflow.bids.dataset import check_dataset, list_subjects
from iqtflow.bids.names import derivative_name, read_entities, scan_seed
from iqtflow.bids.scan import LeftOut, Listing, Scan
from iqtflow.bids.scans import find_scans, list_scans
from iqtflow.bids.sidecars import check_owner, write_dataset_description, write_sidecar

__all__ = [
    "LeftOut",
    "Listing",
    "Scan",
    "check_dataset",
    "check_owner",
    "derivative_name",
    "find_scans",
    "list_scans",
    "list_subjects",
    "read_entities",
    "scan_seed",
    "write_dataset_description",
    "write_sidecar",
]
