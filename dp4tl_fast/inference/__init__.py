"""A trained network put to use: ``evaluate``, ``predict``, ``export``, and what these share."""
