"""XML that nobody vouches for, and the archives it comes in: looked at before anything is unpacked or resolved."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from typing import Any, NamedTuple
from urllib.parse import unquote

from sac_rag.text.cleaning import Refused

MAX_UNZIPPED_BYTES = 200_000_000
MAX_PARTS = 20_000
_EXTERNAL = re.compile(rb"<!ENTITY\s[^>]{0,200}\s(?:SYSTEM|PUBLIC)\s")


def check_zip(data: bytes, kind: str) -> zipfile.ZipFile:
    """The archive; raises Refused if it is damaged, encrypted, or unpacks to more than is sound."""
    try:
        parts = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise Refused(f"damaged {kind}") from None
    found = parts.infolist()
    if sum(info.file_size for info in found) > MAX_UNZIPPED_BYTES:
        raise Refused(f"unzips to over {MAX_UNZIPPED_BYTES} bytes")
    if len(found) > MAX_PARTS:
        raise Refused(f"holds over {MAX_PARTS} files")
    if any(info.flag_bits & 1 for info in found):
        raise Refused(f"encrypted {kind}")
    return parts


class Relation(NamedTuple):
    """A reference of one part to another; `kind` is the last word of its type."""

    id: str
    kind: str
    part: str


class Package:
    """A zipped document by the names of its parts; the kind is for refusals."""

    def __init__(self, data: bytes, kind: str) -> None:
        self.kind = kind
        self._parts = check_zip(data, kind)
        self._names = {_folded(name): name for name in reversed(self._parts.namelist())}
        self.names = tuple(self._names)
        """Names of parts in lower case."""

    def read(self, name: str) -> bytes:
        """A part's bytes; empty if it is missing. Case and the kind of slash do not matter, as on Windows."""
        stored = self._names.get(_folded(name))
        if stored is None:
            return b""
        try:
            return self._parts.read(stored)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
            raise Refused(f"damaged {self.kind}") from None

    def xml(self, name: str) -> Any | None:
        """The root element of a part; None if it is missing."""
        data = self.read(name)
        return xml_root(data, self.kind) if data else None

    def related(self, name: str) -> list[Relation]:
        """What an Open Packaging part refers to within the package; "" for the package itself."""
        folder, _, file = name.rpartition("/")
        root = self.xml(f"{folder}/_rels/{file}.rels" if folder else f"_rels/{file}.rels")
        return [
            Relation(entry.get("Id") or "", (entry.get("Type") or "").rpartition("/")[2], beside(folder, target))
            for entry in (root if root is not None else ())
            if (target := entry.get("Target")) and entry.get("TargetMode") != "External"
        ]

    def title(self) -> str:
        """The title among the properties of an Open Packaging document."""
        for relation in self.related(""):
            if relation.kind == "core-properties" and (title := child(self.xml(relation.part), "title")) is not None:
                return title.text or ""
        return ""


def _folded(name: str) -> str:
    return name.replace("\\", "/").lower()


def xml_root(data: bytes, kind: str, *, entities: bool = False) -> Any:
    """The root element; raises Refused for XML that is not well formed or declares entities of its own.

    With `entities` those that a file declares as texts are put in, as far as libxml2's own limit on what they make of
    a file goes; those that lie elsewhere are refused.
    """
    from lxml import etree

    resolve: Any = "internal" if entities else False
    parser = etree.XMLParser(resolve_entities=resolve, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError:
        reason = "declares xml entities" if _EXTERNAL.search(data) else f"damaged {kind}"
        raise Refused(reason) from None
    declared = root.getroottree().docinfo.internalDTD
    if declared is not None and any(not entities or entity.content is None for entity in declared.iterentities()):
        raise Refused("declares xml entities")
    return root


def local(element: Any) -> str:
    """An element's name without its namespace; empty for comments and instructions."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: Any | None, name: str) -> str | None:
    """An attribute by its name without its namespace."""
    if element is None:
        return None
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), None)


def child(element: Any | None, *names: str) -> Any | None:
    """The first child of that name, below the first of the name before it, and so on; None if one is missing."""
    for name in names:
        element = next((item for item in element if local(item) == name), None) if element is not None else None
    return element


def whole(text: str | None, otherwise: int) -> int:
    """A number of an attribute; `otherwise` for what is none."""
    return int(text) if text and re.fullmatch(r"\d{1,6}", text) else otherwise


def beside(folder: str, target: str) -> str:
    """A part's name, by the folder of the part that refers to it."""
    target = unquote(target)
    parts = [] if target.startswith("/") else folder.split("/") if folder else []
    for part in target.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part and part != ".":
            parts.append(part)
    return "/".join(parts)
