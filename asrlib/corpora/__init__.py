"""Real speech, as tables whose audio stays on disk.

Packaged corpora need no account: they are taken from ``ASRLIB_DATA``, the cache, an installed Debian package, ``apt-get download`` or
the upstream archive, in this order, and compared clip by clip with ``data/splits``. Larger sets are read as they are downloaded.
"""

from asrlib.corpora.catalogue import Card, card, names
from asrlib.corpora.loading import load
from asrlib.corpora.packing import pack
from asrlib.corpora.sources import available, fetch

__all__ = ["Card", "available", "card", "fetch", "load", "names", "pack"]
