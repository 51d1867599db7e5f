"""Nipype workflows: graphs of the package's interfaces, each made by an ``init_*_wf`` factory.

``from iqtflow.workflows import init_enhance_wf`` imports the module of that workflow only.
"""

from iqtflow.utils.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "calibrate": ("init_calibrate_wf", "init_fit_prior_wf"),
        "enhance": ("init_enhance_wf",),
        "evaluate": ("init_evaluate_wf",),
        "prepare": ("init_prepare_wf",),
        "segment": ("init_segment_wf",),
        "train": ("init_train_wf",),
    },
)
