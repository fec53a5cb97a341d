"""A file behind a URL as a local one: what is wanted of it is fetched once, into a cache that processes share, and read there.

``file.RemoteFile`` is the way in. It is imported when a URL is opened: of a local file ``url`` and ``arriving`` are enough.
"""
