"""Whether the pixel data of a JPEG are all there; decoders fill what is missing with grey.

They report it as a warning at most, which Pillow drops. So the file's structure is read first: its
scans, how much data they need at the least, and which are lacking (ITU-T T.81). What a scan cut
short lacks only decoding can tell: further bytes at the end of complete data change no pixel, those
at the end of incomplete data are taken for pixels.
"""

import io
import itertools
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

__all__ = ["data_end_early", "lacking"]

_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Twice \xff: the search for a single byte is what is quick.
_MARKER = re.compile(rb"\xff\xff*[\x01-\xfe]")
_RESTART = re.compile(rb"\xff\xff*[\xd0-\xd7]")
_END_OF_SCAN = re.compile(rb"\xff\xff*[\x01-\xcf\xd8-\xfe]")
# No marker, and unlike the zeros that decoders go on with from the first bit.
_FURTHER = b"\xfe\xa5" * 32
_SMALL = 2**20  # pixels; larger pictures are compared by the means of their blocks


@dataclass
class _Scan:
    """``tables`` are the least bits of a DC and an AC code for each component's id."""

    tables: dict[int, tuple[int, int]]
    first: int  # of the coefficients
    last: int
    high: int  # bits that were sent before, and that are still to be sent
    low: int
    interval: int  # MCUs between restarts; 0: none
    start: int
    stop: int
    restarts: list[int]


@dataclass
class _Frame:
    kind: int = 0
    height: int = 0
    width: int = 0
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)  # across, down
    scans: list[_Scan] = field(default_factory=list)

    def blocks(self, scan: _Scan) -> tuple[int, dict[int, int]]:
        """MCUs of a scan, and blocks of each of its components (A.2)."""
        most_across = max(across for across, _ in self.sampling.values())
        most_down = max(down for _, down in self.sampling.values())
        if len(scan.tables) > 1:
            across = math.ceil(self.width / (8 * most_across))
            count = across * math.ceil(self.height / (8 * most_down))
            return count, {one: count * math.prod(self.sampling[one]) for one in scan.tables}
        [one] = scan.tables
        across, down = self.sampling[one]
        columns = math.ceil(math.ceil(self.width * across / most_across) / 8)
        count = columns * math.ceil(math.ceil(self.height * down / most_down) / 8)
        return count, {one: count}


def lacking(data: bytes) -> str | None:
    """What a JPEG file cannot do without and does not hold, in words; None: nothing.

    Nothing is decoded: so a small file that claims to be a large picture is found out at once.
    """
    frame = _read(data)
    if frame.kind not in (*_SEQUENTIAL, _PROGRESSIVE):
        return None  # decoders refuse them, or need no data (arithmetic coding drops zeros)
    left = {(one, k): 1 for one in frame.sampling for k in range(64)}
    for scan in frame.scans:
        count, blocks = frame.blocks(scan)
        held = scan.stop - scan.start
        least = math.ceil(sum(n * _bits(frame, scan, one) for one, n in blocks.items()) / 8)
        if held < least:
            size = f"{frame.width} x {frame.height}"
            return f"{held} bytes of data for {size} pixels, which need {least} or more"
        if scan.interval and len(scan.restarts) + 1 < math.ceil(count / scan.interval):
            return f"{len(scan.restarts)} restart markers are too few for its size"
        for one, k in itertools.product(scan.tables, range(scan.first, scan.last + 1)):
            left[one, k] = scan.low
    return "some of its scans are missing" if any(left.values()) else None


def data_end_early(data: bytes, image: JpegImageFile | None = None) -> bool:
    """Whether a scan of a JPEG file, of which nothing is lacking, stops before its last pixel.

    ``image`` is what it was decoded to, if it was.
    """
    frame = _read(data)
    if frame.kind not in (*_SEQUENTIAL, _PROGRESSIVE):
        return False
    ends = sorted(place for scan in frame.scans for place in (*scan.restarts, scan.stop))
    parts = [data[start:stop] for start, stop in itertools.pairwise([0, *ends, len(data)])]
    longer = _FURTHER.join(parts)
    # A progressive picture's last scans are fine detail, which the means do not show.
    if frame.kind == _PROGRESSIVE or frame.height * frame.width <= _SMALL:
        pixels = _decoded(data) if image is None else np.asarray(image)
        return not np.array_equal(_decoded(longer), pixels)
    return not np.array_equal(_decoded(longer, means=True), _decoded(data, means=True))


def _decoded(data: bytes, means: bool = False) -> np.ndarray:
    image = JpegImageFile(io.BytesIO(data))
    if means:
        image.draft(image.mode, (1, 1))  # an eighth of the size, which spares most of the work
    return np.asarray(image)


def _bits(frame: _Frame, scan: _Scan, component: int) -> int:
    """Bits that every block of a component takes in a scan at the least."""
    direct, alternating = scan.tables[component]
    if frame.kind != _PROGRESSIVE:
        return direct + alternating
    if scan.first > 0:
        return 0  # one code ends many blocks
    return 1 if scan.high else direct


def _read(data: bytes) -> _Frame:
    """The frame and the scans of the first picture in a file."""
    frame, interval = _Frame(), 0
    codes: dict[int, int] = {}  # shortest code of each table, by its class and number
    for marker, start, body in _segments(data):
        if marker in _FRAMES and not frame.kind:
            frame.kind = marker
            _, frame.height, frame.width, count = struct.unpack_from(">BHHB", body)
            for one, sampling, _ in struct.iter_unpack("BBB", body[6 : 6 + 3 * count]):
                frame.sampling[one] = sampling >> 4, sampling & 15
        elif marker == 0xDD:
            [interval] = struct.unpack_from(">H", body)
        elif marker == 0xC4:
            place = 0
            while place + 17 <= len(body):
                counts = body[place + 1 : place + 17]
                codes[body[place]] = next((n for n, k in enumerate(counts, 1) if k), 1)
                place += 17 + sum(counts)
        elif marker == 0xDA:
            end = _END_OF_SCAN.search(data, start)
            stop = end.start() if end else len(data)
            count = body[0]
            tables = {
                one: (codes.get(which >> 4, 1), codes.get(0x10 | which & 15, 1))
                for one, which in struct.iter_unpack("BB", body[1 : 1 + 2 * count])
            }
            first, last, bits = struct.unpack_from("BBB", body, 1 + 2 * count)
            restarts = [found.start() for found in _RESTART.finditer(data, start, stop)]
            scan = _Scan(tables, first, last, bits >> 4, bits & 15, interval, start, stop, restarts)
            if not tables or not tables.keys() <= frame.sampling.keys() or last > 63:
                raise ValueError("a scan that does not belong to it")
            frame.scans.append(scan)
    return frame


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Marker, place of what follows, and contents of each segment, up to the end of the picture."""
    place = 2
    while found := _MARKER.search(data, place):
        marker, place = data[found.end() - 1], found.end()
        if marker == 0xD9:
            return
        if marker in range(0xD0, 0xD9) or marker == 0x01:
            continue
        [length] = struct.unpack_from(">H", data, place)
        body = data[place + 2 : place + length]
        place += length
        yield marker, place, body
        if marker == 0xDA:
            end = _END_OF_SCAN.search(data, place)
            place = end.start() if end else len(data)
