"""dp4tl_fast: prune the pretraining set for the task you have, then read and train on only what survives.

Chen et al., *Selectivity Drives Productivity*, NeurIPS 2023 (arXiv 2310.08782). Importing this package is cheap: it
imports neither torch nor any backend.
"""

__version__ = "0.1.0"
