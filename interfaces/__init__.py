"""Nipype interfaces: each checks its inputs, calls the science, and declares its outputs.

``from iqtflow.interfaces import EnhanceVolume`` imports the module of that interface only.
"""

from iqtflow.utils.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "audit": ("AuditEnhancement",),
        "calibrate": ("FitPrior", "MeasureSNR"),
        "combine": ("CombineStacks",),
        "conform": ("ConformScan",),
        "enhance": ("EnhanceVolume",),
        "evaluate": ("EvaluateVolume", "SummariseMetrics"),
        "patches": ("ExtractPatches", "WritePairs"),
        "report": ("ReportPrepared", "ReportSubject"),
        "segmentation": ("SegmentTissues",),
        "simulate": ("SimulateLowField",),
        "sink": ("SinkDerivative",),
        "spm": ("UnifiedSegmentation",),
        "train": ("JoinEnsemble", "StampFigures", "TrainModel"),
    },
)
