"""The demo: its data (``data``), and the pipeline run on it (``run``)."""
