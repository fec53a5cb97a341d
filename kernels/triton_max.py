"""What Triton kernels that look for a maximum share."""

import triton
import triton.language as tl


@triton.jit
def nan_max(a, b):
    """The larger one; NaN if either is NaN. Also the combination of a ``tl.reduce``."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
