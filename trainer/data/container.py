"""PNG and JPEG files without what their pixels do not need, so that damaged metadata cost no image.

What is kept: of a PNG (W3C, Portable Network Graphics, section 5.3) the critical chunks and tRNS; of a JPEG (ITU-T
T.81, appendix B) every segment but the comments and the application segments other than JFIF (APP0) and Adobe (APP14),
which says how its colours are stored.
"""

import struct
import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
PNG_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
JPEG = b"\xff\xd8"
JPEG_DROPPED = frozenset({0xFE, *range(0xE1, 0xEE), 0xEF})
START_OF_SCAN = 0xDA
EXIF = b"Exif\0\0"


def without_metadata(data: bytes) -> bytes | None:
    """The same image without its metadata; None for other formats, or where the file's structure is broken."""
    try:
        if data.startswith(PNG):
            chunks = [content for name, content in _chunks(data) if name in PNG_KEPT]
            return b"".join([PNG, *chunks])
        if data.startswith(JPEG):
            kept: list[bytes] = [JPEG]
            for marker, content in _segments(data):
                if marker not in JPEG_DROPPED:
                    kept.append(content)
            return b"".join(kept)
    except (struct.error, IndexError):
        pass
    return None


def exif_block(data: bytes) -> bytes | None:
    """The EXIF block of a PNG or a JPEG, beginning with its TIFF header; None where there is none."""
    try:
        if data.startswith(PNG):
            return next((content[8:-4] for name, content in _chunks(data) if name == b"eXIf"), None)
        if data.startswith(JPEG):
            blocks = (content[4:] for marker, content in _segments(data) if marker == 0xE1)
            return next((block[len(EXIF) :] for block in blocks if block.startswith(EXIF)), None)
    except (struct.error, IndexError):
        pass
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and whole content of each chunk of a PNG, the checksums of ancillary ones aside."""
    at = len(PNG)
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + length + 12]
        if name == b"IEND":
            chunk = struct.pack(">I4sI", 0, name, zlib.crc32(name))
        yield name, chunk
        if name == b"IEND":
            return
        at += length + 12


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and whole content of each segment of a JPEG up to the first scan, which comes with all that follows."""
    at = len(JPEG)
    while True:
        if data[at] != 0xFF:
            raise IndexError(f"no marker at byte {at}")
        while data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker = data[at + 1]
        if marker == START_OF_SCAN:
            yield marker, data[at:]
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, data[at : at + 2 + length]
        at += 2 + length
