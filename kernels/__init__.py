"""Operations with a native (CPU), a Triton (GPU) and a plain torch implementation. Import as ``dp4tl_fast.kernels``.

``label_counts`` and ``linear_label_counts`` serve label mapping, ``kmeans`` and ``nearest_centroid`` feature mapping.
``linear_argmax`` (behind ``linear_label_counts`` and ``nearest_centroid``) and ``cluster_sums`` (behind ``kmeans``) are
internal. Each operation has a folder of its name:

- ``__init__.py`` documents it, checks the arguments and dispatches;
- ``reference.py`` is the truth, in plain torch;
- ``native_impl.py`` calls the C++ core, ``triton_impl.py`` holds the GPU kernel, both with the reference's signature;
- ``tuning.py`` holds sizes that are chosen by measurement.

Operations built on another one have only the first two. torch is imported at the first call, so that the file tools that
need only ``_native`` start without it.
"""

from dp4tl_fast.kernels.kmeans import kmeans
from dp4tl_fast.kernels.label_counts import label_counts
from dp4tl_fast.kernels.linear_label_counts import linear_label_counts
from dp4tl_fast.kernels.nearest_centroid import nearest_centroid

__all__ = ["kmeans", "label_counts", "linear_label_counts", "nearest_centroid"]
