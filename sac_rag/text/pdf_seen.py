"""Which characters of a PDF page a reader of the page does not see: PDFium extracts them like others.

Cheap signs raise a doubt: a render mode that paints nothing, no opacity, a light colour, a layer, a form. Only then the
page is rendered, small, and what it shows at the text's place decides.
"""

from __future__ import annotations

import ctypes
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

MOST_OBJECTS = 20_000
"""Objects of a page among which pictures and forms are looked for."""
MOST_PIXELS = 1500
"""Width or height, in pixels, that a page is rendered at, at the most; otherwise a point is a pixel."""
_PAINTS_NOTHING = (3, 7)
"""Render modes of text that is only there to be found, or to clip."""
_FILLED = (0, 4)
_LIGHT = 200
"""Brightness, of 255, from which on text may be white on white."""
_ALIKE = 12
"""Difference of brightness that nobody sees."""
_OPAQUE = 8
"""Opacity, of 255, under which nothing is seen."""
_LAYER = "OC\0".encode("utf-16-le")
"""The mark of content that belongs to a layer."""


class _Rect(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: _Rect) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )


def unseen_of(sheet: Any, page: Any, text: str) -> Iterator[int]:
    """Indices of characters that are not seen. page: the text page of `sheet`; text: its characters, one an index.

    Text that paints nothing over a picture is what was recognised in a scan, and counts as seen.
    """
    import pypdfium2.raw as c

    view = _View(sheet)
    for start, end in _objects(page, len(text)):
        thing, said = c.FPDFText_GetTextObject(page.raw, start), text[start:end]
        mode = c.FPDFTextObj_GetTextRenderMode(thing)
        brightness, opacity = _colour(page, start) if mode in _FILLED else (0, 255)
        is_light = brightness >= _LIGHT
        is_doubtful = mode in _PAINTS_NOTHING or opacity < _OPAQUE or is_light or view.has_forms or _is_layered(thing)
        if not is_doubtful or not said.strip() or (place := _place(page, start, end)) is None:
            continue
        if mode in _PAINTS_NOTHING:
            is_seen = view.has_picture(place) or view.has_ink(place)
        elif opacity < _OPAQUE or is_light:
            is_seen = opacity >= _OPAQUE and not view.is_filled_with(place, brightness)
        else:
            is_seen = not _is_drawn(thing, said) or view.has_ink(place)
        if not is_seen:
            yield from range(start, end)


def _objects(page: Any, count: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the characters of each text object. Characters that PDFium made up belong to none."""
    import pypdfium2.raw as c

    def of(index: int) -> int:
        return ctypes.cast(c.FPDFText_GetTextObject(page.raw, index), ctypes.c_void_p).value or 0

    for known, indices in itertools.groupby(range(count), of):
        if known:
            found = list(indices)
            yield found[0], found[-1] + 1


def _place(page: Any, start: int, end: int) -> _Rect | None:
    """Around all characters; None for text without a place."""
    import pypdfium2.raw as c

    rect, boxes = c.FS_RECTF(), []
    for index in range(start, end):
        if c.FPDFText_GetLooseCharBox(page.raw, index, ctypes.byref(rect)):
            boxes.append((rect.left, rect.bottom, rect.right, rect.top))
    if not boxes:
        return None
    lefts, bottoms, rights, tops = zip(*boxes, strict=True)
    place = _Rect(min(lefts), min(bottoms), max(rights), max(tops))
    return place if place.right > place.left and place.top > place.bottom else None


def _colour(page: Any, index: int) -> tuple[float, int]:
    """(brightness, opacity) of what fills a character, each up to 255."""
    import pypdfium2.raw as c

    red, green, blue, opacity = (ctypes.c_uint() for _ in range(4))
    if not c.FPDFText_GetFillColor(page.raw, index, red, green, blue, opacity):
        return 0, 255
    return 0.3 * red.value + 0.59 * green.value + 0.11 * blue.value, opacity.value


def _is_layered(thing: Any) -> bool:
    """Whether a text belongs to a layer (optional content), which may be off."""
    import pypdfium2.raw as c

    for number in range(max(c.FPDFPageObj_CountMarks(thing), 0)):
        name, size = ctypes.create_string_buffer(64), ctypes.c_ulong()
        mark = c.FPDFPageObj_GetMark(thing, number)
        buffer = ctypes.cast(name, ctypes.POINTER(c.FPDF_WCHAR))
        has_name = c.FPDFPageObjMark_GetName(mark, buffer, 64, ctypes.byref(size))
        if has_name and name.raw.startswith(_LAYER):
            return True
    return False


def _is_drawn(thing: Any, text: str) -> bool:
    """Whether PDFium has glyphs for a text: those of the file, or its own, which are Latin."""
    import pypdfium2.raw as c

    return text.isascii() or c.FPDFFont_GetIsEmbedded(c.FPDFTextObj_GetFont(thing)) == 1


class _View:
    """What a page shows; looked at where that is asked for."""

    def __init__(self, sheet: Any) -> None:
        import pypdfium2.raw as c

        self._sheet = sheet
        self._pixels: bytes | None = None
        self._width = self._height = self._stride = 0
        self.has_forms = False
        self._pictures: list[_Rect] = []
        for index in range(min(c.FPDFPage_CountObjects(sheet), MOST_OBJECTS)):
            thing = c.FPDFPage_GetObject(sheet, index)
            kind = c.FPDFPageObj_GetType(thing)
            self.has_forms |= kind == c.FPDF_PAGEOBJ_FORM
            if kind == c.FPDF_PAGEOBJ_IMAGE or (kind == c.FPDF_PAGEOBJ_FORM and _holds_picture(thing)):
                sides = [ctypes.c_float() for _ in range(4)]
                if c.FPDFPageObj_GetBounds(thing, *map(ctypes.byref, sides)):
                    self._pictures.append(_Rect(*(side.value for side in sides)))

    def has_picture(self, place: _Rect) -> bool:
        """Whether a picture lies at a place."""
        return any(place.meets(picture) for picture in self._pictures)

    def has_ink(self, place: _Rect) -> bool:
        """Whether anything is to be seen at a place."""
        shown = self._shown(place)
        return not shown or max(shown) - min(shown) > _ALIKE

    def is_filled_with(self, place: _Rect, brightness: float) -> bool:
        """Whether a place is mostly as bright as this."""
        shown = self._shown(place)
        if not shown:
            return False
        (usual, _), *_ = Counter(shown).most_common(1)
        return abs(usual - brightness) <= _ALIKE

    def _shown(self, place: _Rect) -> bytes:
        """Pixels at a place by their brightness; empty outside the page."""
        if self._pixels is None:
            self._render()
        assert self._pixels is not None
        (left, top), (right, bottom) = self._pixel(place.left, place.top), self._pixel(place.right, place.bottom)
        columns = range(max(min(left, right), 0), min(max(left, right) + 1, self._width))
        rows = range(max(min(top, bottom), 0), min(max(top, bottom) + 1, self._height))
        return b"".join(self._pixels[y * self._stride + columns.start : y * self._stride + columns.stop] for y in rows)

    def _pixel(self, x: float, y: float) -> tuple[int, int]:
        import pypdfium2.raw as c

        column, row = ctypes.c_int(), ctypes.c_int()
        to = ctypes.byref(column), ctypes.byref(row)
        c.FPDF_PageToDevice(self._sheet, 0, 0, self._width, self._height, 0, x, y, *to)
        return column.value, row.value

    def _render(self) -> None:
        scale = min(1.0, MOST_PIXELS / max(*self._sheet.get_size(), 1.0))
        bitmap = self._sheet.render(scale=scale, grayscale=True, may_draw_forms=False)
        self._width, self._height, self._stride = bitmap.width, bitmap.height, bitmap.stride
        self._pixels = bytes(bitmap.buffer)
        bitmap.close()


def _holds_picture(form: Any) -> bool:
    import pypdfium2.raw as c

    things = (c.FPDFFormObj_GetObject(form, n) for n in range(min(c.FPDFFormObj_CountObjects(form), MOST_OBJECTS)))
    return any(c.FPDFPageObj_GetType(thing) == c.FPDF_PAGEOBJ_IMAGE for thing in things)
