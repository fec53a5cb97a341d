"""Operations with a native (CPU), a Triton (GPU) and a plain torch implementation. Import as ``dp4tl_fast.kernels``.

``label_counts`` and ``linear_label_counts`` serve label mapping, ``kmeans`` and ``nearest_centroid`` feature mapping.
Each has a folder of its name: ``reference.py`` is the truth in plain torch, ``__init__.py`` documents and dispatches.
torch is imported at the first call, so that the file tools that need only ``_native`` start without it.
"""

from dp4tl_fast.kernels.kmeans import kmeans, minibatch_kmeans
from dp4tl_fast.kernels.label_counts import label_counts
from dp4tl_fast.kernels.linear_label_counts import linear_label_counts
from dp4tl_fast.kernels.nearest_centroid import nearest_centroid

__all__ = ["kmeans", "label_counts", "linear_label_counts", "minibatch_kmeans", "nearest_centroid"]
