"""From images of any kind to a ``.beton``: what is stored of each (``images``), by many threads (``pipeline``), resumable
(``conversion``, ``journal``), in parts (``shards``), by many machines (``parts``, ``ray``)."""
