"""What every training run is besides its loop: its folder and log (``folder``), where it stops, saves and goes on (``session``)."""
