"""The picture of an explanation: the image, its worst patches, and what they were compared with."""

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from offnominal.captions import INK, LINE, PAPER, SOFT, Verdict, font, shorten, write
from offnominal.explain.match import Explanation, KnownMatch, Match
from offnominal.pictures import Image, overlay, resized, stroked
from offnominal.prediction import Prediction
from offnominal.views import Box

__all__ = ["draw"]

_HERE, _NOMINAL, _KNOWN = (0, 230, 255), (110, 255, 120), (255, 90, 80)
_DARK = (20, 20, 20)

_EDGE = 28  # around everything
_GAP = 16
_CELL = 168  # sides of what is cut out
_THUMB = 220  # width of the reference; its height is that of a cell
_WORDS = 330  # width of the text
_ROW = _CELL + 22
_TITLE = 74
_HEADS = 28
_PHOTO = 620  # most pixels of the image's shorter direction
_WIDE = 1.9  # an image wider than this lies on top
_MANY = 760  # fewest pixels of an image's longer side, if it is enlarged
_ENLARGE = 8.0
_SHRUNK = 0.5  # scale under which an image is made smaller before its heat is drawn
_TALL, _TALLEST = 2.5, 1400  # an image taller than this may be so many pixels high
_NARROW = 150  # least sides of the image with the numbers beside it
_DISC = 13


def draw(explanation: Explanation) -> Image:
    """An explanation as one picture, uint8 (H, W, 3), RGB."""
    count = len(explanation.matches)
    wide = 2 * _CELL + _THUMB + _WORDS + 4 * _GAP + 34
    if any(match.known for match in explanation.matches):
        wide += _CELL + _WORDS + 2 * _GAP
    table = (wide, _HEADS + count * _ROW)
    height, width = explanation.prediction.image.shape[:2]
    on_top = width > _WIDE * height
    highest = _TALLEST if height > _TALL * width else max(table[1], _MANY)
    room = (table[0], _PHOTO) if on_top else (_PHOTO, highest)
    photo = _photos(explanation, room, on_top)
    if on_top:
        size = (table[0], _TITLE + photo.height + _GAP + table[1])
        corner = (0, _TITLE + photo.height + _GAP)
    else:
        size = (photo.width + 2 * _GAP + table[0], _TITLE + max(photo.height, table[1]))
        corner = (photo.width + 2 * _GAP, _TITLE)
    sheet = Pillow.new("RGB", (size[0] + 2 * _EDGE, size[1] + 2 * _EDGE), PAPER)
    _title(sheet, explanation, size[0])
    sheet.paste(photo, (_EDGE, _EDGE + _TITLE))
    _table(sheet, explanation, (_EDGE + corner[0], _EDGE + corner[1]))
    return np.asarray(sheet, dtype=np.uint8)


def _title(sheet: Pillow.Image, explanation: Explanation, width: int) -> None:
    prediction = explanation.prediction
    pen = ImageDraw.Draw(sheet)
    verdict = Verdict(prediction.is_anomalous, prediction.score, prediction.threshold)
    word, words = verdict.words()
    write(pen, (_EDGE, _EDGE - 4), shorten(prediction.source, width, 25), 25, INK)
    if _heat_range(prediction)[1]:
        words += "; heat relative to this image's own peak"
    end = write(pen, (_EDGE, _EDGE + 32), word, 18, verdict.colour)
    write(pen, (_EDGE + end + 14, _EDGE + 32), words, 18, SOFT)


def _heat_range(prediction: Prediction) -> tuple[tuple[float, float], bool]:
    """Map values drawn as none and as full heat, and whether they are this image's own."""
    low, high = prediction.colour_range
    peak = float(prediction.anomaly_map.max())
    if peak > (low + high) / 2:
        return (low, high), False
    # Of an image that passes nothing would be seen, and it may be a defect that was missed.
    return (0.6 * peak, 1.4 * peak), True


def _photos(explanation: Explanation, room: tuple[int, int], beside: bool) -> Pillow.Image:
    """The image with its heat; of a scan also what it looks like, beside it or above it."""
    prediction = explanation.prediction
    if prediction.relief is None:
        return _photo(explanation, prediction.image, room)
    across, down = (2, 1) if beside else (1, 2)
    half = ((room[0] - _GAP * (across - 1)) // across, (room[1] - _GAP * (down - 1)) // down)
    plain = _photo(explanation, prediction.image, half, hot=False)
    hot = _photo(explanation, prediction.relief, half)
    if beside:
        both = Pillow.new("RGB", (plain.width + _GAP + hot.width, hot.height), PAPER)
        both.paste(hot, (plain.width + _GAP, 0))
    else:
        both = Pillow.new("RGB", (hot.width, plain.height + _GAP + hot.height), PAPER)
        both.paste(hot, (0, plain.height + _GAP))
    both.paste(plain, (0, 0))
    return both


def _photo(
    explanation: Explanation, image: Image, room: tuple[int, int], hot: bool = True
) -> Pillow.Image:
    """A picture of what was seen with its heat and numbered boxes, to fit into a room."""
    prediction = explanation.prediction
    height, width = image.shape[:2]
    scale = min(room[0] / width, room[1] / height, _ENLARGE)
    limit = prediction.region_threshold if hot else None
    heat, drawn = prediction.anomaly_map, scale
    if scale < _SHRUNK:  # colours of pixels that are not shown would take most of the time
        image, drawn = _sized(image, scale), 1.0
        heat = resized(heat, (image.shape[1], image.shape[0]))
    if hot:
        image = overlay(image, heat, *_heat_range(prediction)[0])
    picture = _sized(image, drawn)
    if limit is not None:
        level = resized(heat, (picture.shape[1], picture.shape[0]))
        picture = stroked(picture, level > limit, [(0.5, PAPER)])
    # Numbers of a narrow image stand beside it.
    side, top = (max(0, (_NARROW - extent) // 2) for extent in (picture.shape[1], picture.shape[0]))
    photo = Pillow.new("RGB", (picture.shape[1] + 2 * side, picture.shape[0] + 2 * top), PAPER)
    photo.paste(Pillow.fromarray(picture), (side, top))
    pen = ImageDraw.Draw(photo)
    boxes = [_scaled(match.box, scale, side, top) for match in explanation.matches]
    for match, box in reversed(list(zip(explanation.matches, boxes, strict=True))):
        _frame(pen, box, _HERE)  # the worst is drawn last, over the others
        _disc(pen, _beside(box, photo.size), match.number)
    return photo


def _scaled(box: Box, scale: float, side: int, top: int) -> tuple[float, float, float, float]:
    x, y, width, height = box
    left, above = side + x * scale, top + y * scale
    return left, above, left + width * scale - 1, above + height * scale - 1


def _beside(box: tuple[float, ...], size: tuple[int, int]) -> tuple[float, float]:
    """Where a disc stands at a box's upper left corner, or at the other side of it."""
    away = 1.3 * _DISC
    x = box[0] - away if box[0] > 2.5 * _DISC else box[2] + away
    y = box[1] - away if box[1] > 2.5 * _DISC else box[3] + away
    return min(max(x, _DISC), size[0] - _DISC - 1), min(max(y, _DISC), size[1] - _DISC - 1)


def _table(sheet: Pillow.Image, explanation: Explanation, corner: tuple[int, int]) -> None:
    pen = ImageDraw.Draw(sheet)
    left, top = corner
    columns = [left + 34]
    heads = ["in this image", "nearest nominal patch", "the reference it is from", ""]
    for width in (_CELL, _CELL, _THUMB, _WORDS, _CELL):
        columns.append(columns[-1] + width + _GAP)
    knows = any(match.known for match in explanation.matches)
    for x, words in zip(columns, [*heads, *["nearest known defect"] * knows], strict=False):
        write(pen, (x, top), words, 15, SOFT)
    for number, match in enumerate(explanation.matches):
        y = top + _HEADS + number * _ROW
        if number:
            line = (left, y - 11, columns[5 if knows else 3] + _WORDS, y - 11)
            pen.line(line, fill=LINE)
        _disc(pen, (left + 12, y + _CELL // 2), match.number)
        _cell(sheet, match.patch, (columns[0], y), _HERE)
        _cell(sheet, match.nominal, (columns[1], y), _NOMINAL)
        _reference(sheet, explanation.references[match.origin.digest], match, (columns[2], y))
        _words(pen, match, (columns[3], y))
        if match.known:
            _known(sheet, match.known, (columns[4], columns[5], y))


def _known(sheet: Pillow.Image, known: KnownMatch, corner: tuple[int, int, int]) -> None:
    """A known defect's patch, where its image is there, and what is known of it."""
    cell, x, y = corner
    pen = ImageDraw.Draw(sheet)
    if known.patch is None:
        pen.rectangle((cell, y, cell + _CELL - 1, y + _CELL - 1), outline=LINE)
        for number, words in enumerate(("its picture is", "no longer there")):
            write(pen, (cell + 24, y + 60 + 22 * number), words, 15, SOFT)
    else:
        _cell(sheet, known.patch, (cell, y), _KNOWN)
    left, top, width, height = known.box
    write(pen, (x, y + 2), shorten(known.kind, _WORDS, 21), 21, INK)
    place = f"there x {_span(left, width)}, y {_span(top, height)} px"
    lines = (
        (f"cosine distance {known.distance:#.3g}", SOFT),
        (shorten(known.file, _WORDS, 15), INK),
        (place, SOFT),
    )
    for number, (words, colour) in enumerate(lines):
        write(pen, (x, y + 38 + 22 * number), words, 15, colour)


def _cell(
    sheet: Pillow.Image, cut: Image, corner: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """What was cut out, with a frame around the patch in its middle."""
    height, width = cut.shape[:2]
    picture = Pillow.fromarray(_sized(cut, _CELL / max(height, width)))
    wide, high = picture.size
    step_x, step_y = wide / 7, high / 7
    _frame(ImageDraw.Draw(picture), (3 * step_x, 3 * step_y, 4 * step_x, 4 * step_y), colour)
    sheet.paste(picture, (corner[0] + (_CELL - wide) // 2, corner[1] + (_CELL - high) // 2))


def _reference(
    sheet: Pillow.Image, reference: Image, match: Match, corner: tuple[int, int]
) -> None:
    """The whole reference, as its file shows it, with the patch's outline at its place."""
    height, width = reference.shape[:2]
    scale = min(_THUMB / width, _CELL / height, _ENLARGE)
    picture = Pillow.fromarray(_sized(reference, scale))
    pen = ImageDraw.Draw(picture)
    points = [(x * scale, y * scale) for x, y in match.origin.corners]
    middle = np.mean(points, axis=0)
    # A patch of a large image would be a dot: its outline is drawn no smaller than can be seen.
    reach = max(float(np.abs(np.asarray(points) - middle).max()), 0.1)
    grown = [tuple(middle + (np.asarray(p) - middle) * max(1.0, 6 / reach)) for p in points]
    for thickness, colour in ((4, _DARK), (2, _NOMINAL)):
        pen.line([*grown, grown[0], grown[1]], fill=colour, width=thickness, joint="curve")
    x = corner[0] + (_THUMB - picture.width) // 2
    sheet.paste(picture, (x, corner[1] + (_CELL - picture.height) // 2))


def _words(pen: ImageDraw.ImageDraw, match: Match, corner: tuple[int, int]) -> None:
    x, y = corner
    origin = match.origin
    left, top, width, height = match.box
    from_left, from_top, wide, high = origin.box
    write(pen, (x, y + 2), f"distance {match.distance:#.3g}", 21, INK)
    lines = [(f"here x {_span(left, width)}, y {_span(top, height)} px", SOFT)]
    if not np.isclose(match.score, match.distance, rtol=1e-4, atol=0):
        lines.insert(0, (f"patch score {match.score:#.3g}", SOFT))
    lines += [
        (shorten(origin.file, _WORDS, 15), INK),
        (f"there x {_span(from_left, wide)}, y {_span(from_top, high)} px", SOFT),
        (_turned(match), SOFT),
    ]
    if origin.mirrored:
        lines.append(("in a corner that was filled by mirroring", SOFT))
    for number, (words, colour) in enumerate(lines):
        write(pen, (x, y + 38 + 22 * number), shorten(words, _WORDS, 15, False), 15, colour)


def _turned(match: Match) -> str:
    """How the reference was changed, in words."""
    if match.origin.angle:
        return f"reference turned by {match.origin.angle:g}° anticlockwise"
    words = {"": "as it is", "rows": "flipped upside down", "columns": "flipped left to right"}
    return f"reference {words[match.origin.flip]}"


def _span(start: int, length: int) -> str:
    return f"{start} to {start + length}"


def _sized(image: Image, scale: float) -> Image:
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return resized(image, size)


def _frame(pen: ImageDraw.ImageDraw, box: tuple[float, ...], colour: tuple[int, int, int]) -> None:
    """A frame that shows on dark and on light, and no smaller than can be seen."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half_x, half_y = max(4.0, (box[2] - box[0]) / 2), max(4.0, (box[3] - box[1]) / 2)
    inner = (x - half_x, y - half_y, x + half_x, y + half_y)
    pen.rectangle((inner[0] - 1, inner[1] - 1, inner[2] + 1, inner[3] + 1), outline=_DARK, width=4)
    pen.rectangle(inner, outline=colour, width=2)


def _disc(pen: ImageDraw.ImageDraw, centre: tuple[float, float], number: int) -> None:
    x, y = round(centre[0]), round(centre[1])
    box = (x - _DISC, y - _DISC, x + _DISC, y + _DISC)
    pen.ellipse(box, fill=_HERE, outline=_DARK, width=2)
    pen.text((x, y), str(number), fill=_DARK, font=font(16), anchor="mm")
