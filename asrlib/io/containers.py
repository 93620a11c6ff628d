"""What a container says of its own size, and the recordings that were joined to one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal

from asrlib import AsrlibError

__all__ = ["announced_end", "length_unknown", "read_at", "recordings", "truncated"]

SCANNED = 1 << 20  # bytes looked through at a time
STREAMED = 0x7F00_0000  # a 32-bit size of at least this, beyond the file's end, was written before the length was known
JOINED = (
    b"RIFF",
    b"RIFX",
    b"FORM",
    b"RF64",
    b"BW64",
    b"riff",
    b".snd",
    b"caff",
    b"0&\xb2u",
    b"\x1aE\xdf\xa3",
)  # with a size


def truncated(name: str) -> AsrlibError:
    """Return what is said of a file that lacks its end."""
    return AsrlibError(f"{name} is truncated: its end is missing, so fetch or record it again.")


class _Part:
    """The bytes from ``start`` to ``stop`` of a stream, as a stream; a damaged header leads to no place outside of them."""

    def __init__(self, stream: BinaryIO, start: int, stop: int) -> None:
        self.stream, self.start, self.size, self.at = stream, start, stop - start, 0

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = min(max(0, offset + (0, self.at, self.size)[whence]), self.size)
        return self.at

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.size - self.at)
        self.stream.seek(self.start + self.at)
        data = self.stream.read(left if count < 0 else min(count, left))
        self.at += len(data)
        return data


def read_at(stream: BinaryIO, place: int, count: int) -> bytes:
    """Return some bytes of a stream."""
    stream.seek(place)
    return stream.read(count)


def announced_end(stream: BinaryIO, head: bytes, size: int) -> int:
    """Return the byte after the last one that the container announces; ``size``, the file's, where it announces none."""
    magic, little = head[:4], lambda start, stop: int.from_bytes(head[start:stop], "little")
    if magic in (b"RIFF", b"RIFX", b"FORM"):
        declared = int.from_bytes(head[4:8], "little" if magic == b"RIFF" else "big")
        return size if declared >= STREAMED else 8 + declared
    if magic == b".snd":
        declared = int.from_bytes(head[8:12], "big")
        return size if declared >= STREAMED else int.from_bytes(head[4:8], "big") + declared
    if magic in (b"RF64", b"BW64"):
        return size if little(20, 28) >> 62 else 8 + little(20, 28)
    if magic == b"riff":  # W64
        return size if little(16, 24) >> 62 else little(16, 24)
    if magic == b"caff":
        return _walk(stream, 8, size, _caf_chunk, magic)
    if magic == b"0&\xb2u":  # ASF
        return _walk(stream, 0, size, lambda item: int.from_bytes(item[16:24], "little"), magic)
    if head[4:8] in (b"ftyp", b"moov", b"wide", b"mdat"):
        return _walk(stream, 0, size, _mp4_box, b"ftyp")
    if magic == b"\x1aE\xdf\xa3":  # Matroska and WebM
        return _matroska_end(read_at(stream, 0, 256), size)
    if head[:3] == b"ID3" or head[:1] == b"\xff":
        return _mp3_end(stream, _id3_end(head), size)
    return size


def _walk(stream: BinaryIO, start: int, size: int, length: Callable[[bytes], int], first: bytes) -> int:
    """Go from item to item of a container, to where the first one of another begins; one without a length goes on to the end."""
    at = start
    while at < size:
        item = read_at(stream, at, 24)
        if at > start and first in (item[:4], item[4:8]):
            return at
        if len(item) < 8 or (count := length(item)) < 8:
            return size
        at += count
    return at


def _caf_chunk(item: bytes) -> int:
    count = int.from_bytes(item[4:12], "big", signed=True)
    return 12 + count if count >= 0 else 0


def _mp4_box(item: bytes) -> int:
    if not item[4:8].isalnum():
        return 0  # not a box: something was put behind them
    count = int.from_bytes(item[:4], "big")
    return int.from_bytes(item[8:16], "big") if count == 1 else count


def _matroska_end(head: bytes, size: int) -> int:
    """Return the end of the segment, whose size follows its identifier (RFC 8794, section 4: the first byte tells how long it is)."""
    at = head.find(b"\x18\x53\x80\x67") + 4
    if at < 4 or at >= len(head) or not head[at]:
        return size
    width = 9 - head[at].bit_length()
    declared = int.from_bytes(head[at : at + width], "big") - (1 << 7 * width)
    return size if declared in (0, (1 << 7 * width) - 1) else at + width + declared


def _id3_end(head: bytes) -> int:
    if head[:3] != b"ID3":
        return 0
    return 10 + sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(head[6:10]))


def _mp3_end(stream: BinaryIO, start: int, size: int) -> int:
    """Return where an MP3 should end by its first frame, which may hold a table of contents (Xing, Info) with the bytes in all."""
    frame = read_at(stream, start, 256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    flags = frame[at + 7] if 0 <= at < len(frame) - 16 else 0
    if not flags & 2:
        return size
    place = at + (12 if flags & 1 else 8)
    return start + int.from_bytes(frame[place : place + 4], "big")


def length_unknown(stream: BinaryIO, head: bytes, size: int) -> bool:
    """Say whether libsndfile would not know where the sound ends."""
    if head[:3] == b"ID3":
        return read_at(stream, _id3_end(head), 4) != b"fLaC"
    if head[:4] == b"fLaC":  # the length in samples: the low 36 bits of STREAMINFO's numbers; 0 where it was piped
        return int.from_bytes(head[21:26], "big") & 0xF_FFFF_FFFF == 0
    if head[:4] in (b"RIFF", b"RIFX"):
        return _wave_lies(stream, head, size)
    if head[:4] in (b"RF64", b"BW64"):  # the size of the samples: 0 where it was piped
        return not any(head[28:36])
    if head[:4] == b".snd":
        return not 0 < int.from_bytes(head[8:12], "big") < STREAMED
    return head[:1] == b"\xff" and head[1:2] >= b"\xe0"


def _wave_lies(stream: BinaryIO, head: bytes, size: int) -> bool:
    """Say whether a WAV's data size is not the truth: written before the length was known, or too large for 32 bits."""
    order: Literal["little", "big"] = "little" if head[:4] == b"RIFF" else "big"
    at = 12
    while at + 8 <= size:
        chunk = read_at(stream, at, 8)
        count = int.from_bytes(chunk[4:], order)
        after = at + 8 + count + count % 2
        if chunk[:4] == b"data":
            more = size - after
            if (
                count and abs(8 + int.from_bytes(head[4:8], order) - after) <= 1
            ):  # whatever follows, the header is closed
                return more >= 1 << 32
            if count >= STREAMED:
                return more < -1
            # Samples may follow, or another chunk; not every program pads an odd size.
            behind = read_at(stream, at + 8 + count, 9)
            return more > 8 and not any(_is_chunk(item, order, more) for item in (behind[:8], behind[1:]))
        at = after
    return False


def _is_chunk(item: bytes, order: Literal["little", "big"], left: int) -> bool:
    return item[:4].isascii() and item[:4].decode().isprintable() and int.from_bytes(item[4:], order) <= left


def recordings(stream: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Yield the recordings that follow each other in a file, as `cat` joins them; in others FFmpeg goes on by itself."""
    start, size = 0, stream.seek(0, os.SEEK_END)
    while True:
        rest = _Part(stream, start, size)
        following = _following(rest, name)
        yield _Part(stream, start, start + following) if following else rest
        if not following:
            return
        start += following


def _following(stream: BinaryIO, name: str) -> int:
    """Return the place where a second recording begins; 0 where there is none."""
    size = stream.seek(0, os.SEEK_END)
    head = read_at(stream, 0, 64)
    if head[:4] == b"OggS":
        return _second_ogg(stream, name, size)
    if head[:4] == b"fLaC":
        return _second_flac(stream)
    end = announced_end(stream, head, size)
    for at in (end, end + 1):  # an odd size may be filled up
        after = read_at(stream, at, 12)
        if after[4:8] == head[4:8] == b"ftyp" or (head[:4] in JOINED and after[:4] == head[:4] and at < size):
            return at
    return 0


def _second_flac(stream: BinaryIO) -> int:
    """Look for the signature and the head of STREAMINFO, which has 34 bytes (RFC 9639, section 8)."""
    at, signature = 4, b"fLaC\0\0\0\x22"
    while len(block := read_at(stream, at, SCANNED)) >= len(signature):
        if (found := block.find(signature)) >= 0:
            return at + found
        at += len(block) - len(signature) + 1
    return 0


def _second_ogg(stream: BinaryIO, name: str, size: int) -> int:
    """Go from page to page (RFC 3533, section 6): a recording begins with the first pages of its streams, several in a row."""
    at, first = 0, True
    while at < size:
        page = read_at(stream, at, 27 + 255)
        if page[:4] != b"OggS":
            skipped = read_at(stream, at, SCANNED).find(b"OggS", 1)
            if skipped < 0:
                break  # something else was put behind it
            at += skipped
            continue
        begins = bool(page[5] & 2)
        if begins and not first:
            return at
        first = begins
        segments = page[26] if len(page) > 26 else 255
        at += 27 + segments + sum(page[27 : 27 + segments])
        if len(page) < 27 + segments or at > size:
            raise truncated(name)
    return 0
