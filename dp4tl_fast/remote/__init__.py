"""A file behind a URL as a local one: what is wanted of it is fetched once, into a cache that processes share, and read there."""

from dp4tl_fast.remote.arrivals import Arrivals, Arriving, local
from dp4tl_fast.remote.cache import CacheConfig
from dp4tl_fast.remote.file import RemoteFile
from dp4tl_fast.remote.url import Url, is_url, shown

__all__ = ["Arrivals", "Arriving", "CacheConfig", "RemoteFile", "Url", "is_url", "local", "shown"]
