"""What was typed into a PDF or written on it: values of form fields at their places, and notes."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sac_rag.text.layout import Piece, lines_of

MOST_ANNOTATIONS = 5000
"""Annotations of a page that are looked at."""
_UNSEEN = 2 | 32
"""Flags "hidden" and "no view"."""


def filled_in(sheet: Any, pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces with the values of form fields between them, each behind what stands before it on its line."""
    values = {id(value): (name, value) for name, value in _values(sheet)}
    if not values:
        return list(pieces)
    found = list(pieces)
    for line in lines_of([*pieces, *(value for _, value in values.values())]):
        before: Piece | None = None
        for piece in line:
            if id(piece) in values:
                name, value = values[id(piece)]
                if before:
                    place, text = found.index(before) + 1, f" {value.text}"
                else:  # nothing on the page says what this is
                    place = next((i for i, p in enumerate(found) if p.top < value.bottom), len(found))
                    text = f"{name}: {value.text}" if name else value.text
                piece = dataclasses.replace(value, text=text)
                found.insert(place, piece)
            before = piece
    return [dataclasses.replace(piece, order=i) for i, piece in enumerate(found)]


def notes_of(sheet: Any) -> list[str]:
    """Texts of notes, comments and text boxes."""
    import pypdfium2.raw as c

    passed_over = (c.FPDF_ANNOT_WIDGET, c.FPDF_ANNOT_LINK, c.FPDF_ANNOT_POPUP)
    found = []
    for annotation, kind in _annotations(sheet):
        if kind not in passed_over and (text := _string(c.FPDFAnnot_GetStringValue, annotation, b"Contents").strip()):
            found.append(text)
    return list(dict.fromkeys(found))


def _values(sheet: Any) -> Iterator[tuple[str, Piece]]:
    """(name of the field, its value where it is shown)."""
    import pypdfium2.raw as c

    form = sheet.formenv
    for annotation, kind in _annotations(sheet):
        if kind != c.FPDF_ANNOT_WIDGET or form is None:
            continue
        field = c.FPDFAnnot_GetFormFieldType(form, annotation)
        if field in (c.FPDF_FORMFIELD_CHECKBOX, c.FPDF_FORMFIELD_RADIOBUTTON):
            value = "[x]" if c.FPDFAnnot_IsChecked(form, annotation) else "[ ]"
        elif field in (c.FPDF_FORMFIELD_PUSHBUTTON, c.FPDF_FORMFIELD_SIGNATURE):
            continue
        else:
            value = _string(c.FPDFAnnot_GetFormFieldValue, form, annotation).replace("\r", "\n").strip()
        place = c.FS_RECTF()
        if not value or not c.FPDFAnnot_GetRect(annotation, ctypes.byref(place)):
            continue
        name = _string(c.FPDFAnnot_GetFormFieldAlternateName, form, annotation)
        name = name or _string(c.FPDFAnnot_GetFormFieldName, form, annotation)
        low, high = sorted((place.bottom, place.top))
        yield " ".join(name.split()), Piece(value, place.left, low, place.right, high)


def _annotations(sheet: Any) -> Iterator[tuple[Any, int]]:
    """(handle, kind) of each annotation that is shown."""
    import pypdfium2.raw as c

    for index in range(min(c.FPDFPage_GetAnnotCount(sheet), MOST_ANNOTATIONS)):
        annotation = c.FPDFPage_GetAnnot(sheet, index)
        if not annotation:
            continue
        try:
            if not c.FPDFAnnot_GetFlags(annotation) & _UNSEEN:
                yield annotation, c.FPDFAnnot_GetSubtype(annotation)
        finally:
            c.FPDFPage_CloseAnnot(annotation)


def _string(get: Callable[..., int], *of: Any) -> str:
    """What a function of PDFium writes into a buffer as UTF-16."""
    import pypdfium2.raw as c

    size = get(*of, None, 0)
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    get(*of, ctypes.cast(buffer, ctypes.POINTER(c.FPDF_WCHAR)), size)
    return buffer.raw[: size - 2].decode("utf-16-le", "replace")
