"""Files made by hand, down to the parts that libraries would not write."""

from __future__ import annotations

from collections.abc import Sequence

Place = tuple[float, float, str]


def written_pdf(
    *pages: Sequence[Place],
    fields: Sequence[tuple[str, str, tuple[float, ...]]] = (),
    notes: Sequence[tuple[str, str]] = (),
    lost: Sequence[int] = (),
    turn: int = 0,
) -> bytes:
    """A PDF of texts at places (points, y up) in 12 point Helvetica.

    fields: (name, entries, rectangle) of form fields of the first page. notes: (entries, text) of its annotations.
    lost: numbers of pages whose object is missing. turn: degrees by which pages are turned and their text turned back.
    """
    matrix = {0: "1 0 0 1 {x} {y}", 90: "0 1 -1 0 {v} {x}", 180: "-1 0 0 -1 {u} {v}", 270: "0 -1 1 0 {y} {u}"}[turn]
    width, height = 612, 792
    kids = [4 + 2 * n for n in range(len(pages))]
    first_extra = 4 + 2 * len(pages)
    extras = [
        f"<< /Type /Annot /Subtype /Widget /T ({name}) /Rect [{' '.join(map(str, rect))}] /F 4 {entries} >>"
        for name, entries, rect in fields
    ]
    extras += [f"<< /Type /Annot /Rect [9 9 20 20] /Contents ({text}) {entries} >>" for entries, text in notes]
    numbers = [f"{first_extra + n} 0 R" for n in range(len(extras))]
    form = f"/AcroForm << /Fields [{' '.join(numbers[: len(fields)])}] >>" if fields else ""
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {form} >>",
        f"<< /Type /Pages /Kids [{' '.join(f'{k} 0 R' for k in kids)}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, page in enumerate(pages, 1):
        size = f"{width} {height}" if turn % 180 == 0 else f"{height} {width}"
        annotations = f"/Annots [{' '.join(numbers)}]" if number == 1 and numbers else ""
        shown = "".join(f"{matrix.format(x=x, y=y, u=width - x, v=height - y)} Tm ({text}) Tj\n" for x, y, text in page)
        content = f"BT /F1 12 Tf\n{shown}ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size}] /Rotate {turn}"
            f" /Resources << /Font << /F1 3 0 R >> >> /Contents {kids[number - 1] + 1} 0 R"
            f" {annotations} >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
        if number in lost:
            objects[-2] = "null"
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate([*objects, *extras], 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n" + "".join(f"{at:010} 00000 n \n" for at in places)
    out += f"trailer\n<< /Size {len(places) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return out.encode("latin-1")


def painted_pdf(*pages: str, resources: str = "", catalog: str = "", extras: Sequence[str] = ()) -> bytes:
    """A PDF of the content streams of pages, with Helvetica as /F1. Objects of `extras` are numbered from 100 on."""
    kids = [4 + 2 * n for n in range(len(pages))]
    objects = {
        1: f"<< /Type /Catalog /Pages 2 0 R {catalog} >>",
        2: f"<< /Type /Pages /Kids [{' '.join(f'{k} 0 R' for k in kids)}] /Count {len(pages)}"
        " /MediaBox [0 0 595 842] >>",
        3: "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        **{100 + n: extra for n, extra in enumerate(extras)},
    }
    for kid, content in zip(kids, pages, strict=True):
        objects[kid] = (
            f"<< /Type /Page /Parent 2 0 R /Contents {kid + 1} 0 R"
            f" /Resources << /Font << /F1 3 0 R >> {resources} >> >>"
        )
        objects[kid + 1] = f"<< /Length {len(content)} >>\nstream\n{content}\nendstream"
    body = "".join(f"{number} 0 obj\n{text}\nendobj\n" for number, text in sorted(objects.items()))
    return f"%PDF-1.5\n{body}trailer\n<< /Root 1 0 R >>\n%%EOF\n".encode("latin-1")
