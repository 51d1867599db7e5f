"""Image quality transfer for low-field, thick-slice MRI of the brain, as a BIDS App and as nipype
workflows.
"""

from __future__ import annotations

__version__ = "0.1.0"
