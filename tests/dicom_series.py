"""A DICOM series as a scanner stores it: one file for each axial slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

#: Two series of one visit.
STUDY = generate_uid(entropy_srcs=["study"])


def write_series(
    folder: Path,
    volume: np.ndarray,
    description: str,
    *,
    spacing_mm: float,
    thickness_mm: float | None = None,
    pixel_mm: float = 1.5,
    number: int = 1,
) -> None:
    """Write a volume (x, y, z), slices along the third axis, as a series of DICOM files."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.round(volume / volume.max() * 1000).astype(np.uint16)
    series = generate_uid(entropy_srcs=[description])
    for index in range(stored.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[description, str(index)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number:02d}-{index:03d}.dcm"
        image = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
        image.update({})
        fields = {
            "SOPClassUID": MRImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "StudyInstanceUID": STUDY,
            "SeriesInstanceUID": series,
            "FrameOfReferenceUID": STUDY,
            "Modality": "MR",
            "Manufacturer": "phantom",
            "PatientID": "phantom",
            "PatientName": "phantom",
            "StudyDate": "20240101",
            "StudyTime": "120000",
            "ImageType": ["ORIGINAL", "PRIMARY", "M"],
            "SeriesNumber": number,
            "SeriesDescription": description,
            "ProtocolName": description,
            "InstanceNumber": index + 1,
            "MagneticFieldStrength": 0.36,
            "RepetitionTime": 400,
            "EchoTime": 15,
            "SliceThickness": thickness_mm or spacing_mm,
            "SpacingBetweenSlices": spacing_mm,
            "PixelSpacing": [pixel_mm, pixel_mm],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [-50, -50, index * spacing_mm],
            "Rows": stored.shape[1],
            "Columns": stored.shape[0],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
        }
        for name, value in fields.items():
            setattr(image, name, value)
        image.PixelData = np.ascontiguousarray(stored[:, :, index].T).tobytes()
        pydicom.dcmwrite(path, image, enforce_file_format=True)
