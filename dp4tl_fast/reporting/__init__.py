"""Finished runs side by side: read (``runs``), compared (``compare``), as a table, as plots, as one HTML page."""
