"""Real speech, as tables whose audio stays on disk.

Packaged corpora (``telephone``, ``picture_words``, ``audiobook``, ``dialogue``, ``untranscribed``) need no account: they are taken
from ``ASRLIB_DATA``, the cache, an installed Debian package, ``apt-get download`` or the upstream archive, in this order. Every clip is
compared with the committed list in ``data/splits``, which also holds the splits and every exclusion with its reason
(``tools/curate.py`` makes it). Larger sets (``librispeech``, ``fleurs``, ``common_voice``, ``folder``) are read as they are downloaded.
"""

from asrlib.corpora.cards import Card, card
from asrlib.corpora.catalogue import names
from asrlib.corpora.loading import load
from asrlib.corpora.packing import pack
from asrlib.corpora.sources import available, fetch

__all__ = ["Card", "available", "card", "fetch", "load", "names", "pack"]
