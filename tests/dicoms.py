"""DICOM files for tests: small mammograms with complete headers."""

import io
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MAMMOGRAPHY = "1.2.840.10008.5.1.4.1.1.1.2"
"""Digital Mammography X-Ray Image Storage - For Presentation."""


def mammogram(pixels: np.ndarray, *, bits: int = 0, **attributes: Any) -> FileDataset:
    """A data set of these pixels; attributes by keyword replace the defaults, None takes one away."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = attributes.get("SOPClassUID", MAMMOGRAPHY)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    facts = {
        "SOPClassUID": MAMMOGRAPHY,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "PatientID": "P1",
        "Modality": "MG",
        "PresentationIntentType": "FOR PRESENTATION",
        "ImageLaterality": "R",
        "ViewPosition": "MLO",
        "ImagerPixelSpacing": [0.1, 0.1],
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": bits or 8 * pixels.itemsize,
        "HighBit": (bits or 8 * pixels.itemsize) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **attributes,
    }
    for keyword, value in facts.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    return dataset


def written(dataset: Dataset) -> bytes:
    """The bytes of the file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def code(value: str, scheme: str = "SCT", meaning: str = "of a view", **attributes: Any) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    for keyword, of in attributes.items():
        setattr(item, keyword, of)
    return item


def complete(pixels: np.ndarray, **attributes: Any) -> FileDataset:
    """A mammogram with every attribute that its IOD requires (PS3.3, A.26); made-up patient."""
    facts = {
        "PatientName": "Made^Up",
        "PatientID": "MADE-UP-1",
        "PatientBirthDate": "19600102",
        "PatientSex": "F",
        "StudyID": "1",
        "StudyDate": "20250304",
        "StudyTime": "101112",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "Manufacturer": "nobody",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "PatientOrientation": ["P", "L"],
        "ContentDate": "20250304",
        "ContentTime": "101112",
        "AcquisitionDate": "20250304",
        "AcquisitionTime": "101112",
        "BodyPartExamined": "BREAST",
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": -1,
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "RescaleType": "US",
        "PresentationLUTShape": "IDENTITY",
        "WindowCenter": 2**11,
        "WindowWidth": 2**12,
        "PositionerType": "MAMMOGRAPHIC",
        "DetectorType": "DIRECT",
        "OrganExposed": "BREAST",
        "BreastImplantPresent": "NO",
        "AcquisitionContextSequence": [],
        "AnatomicRegionSequence": [code("76752008", meaning="Breast")],
        "ViewCodeSequence": [code("399368009", meaning="medio-lateral oblique", ViewModifierCodeSequence=[])],
        **attributes,
    }
    return mammogram(pixels, bits=12, **facts)
