"""The libraries of a server by name, each open once, with one thread that changes it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sac_rag.errors import ConfigError
from sac_rag.library.filters import all_of
from sac_rag.places import places_of
from sac_rag.serve.errors import ApiError
from sac_rag.serve.keys import Key

if TYPE_CHECKING:
    from sac_rag.pipeline import SacRag

T = TypeVar("T")


def named(places: Sequence[str]) -> dict[str, str]:
    """Names to folders, of `FOLDER`, `NAME=FOLDER` or `NAME=FOLDER,FOLDER…`; one folder is named by its last part.

    Raises ConfigError for two of one name, and for a name with an @ or a slash.
    """
    found: dict[str, str] = {}
    for place in places:
        name, sign, folder = place.partition("=")
        if not sign or os.path.lexists(place):
            name, folder = Path(os.path.abspath(place)).name, place
        if not sign and len(places_of(place)) > 1:
            raise ConfigError(f"{place!r} is several libraries: write NAME={place} to serve them as one")
        if not name or not folder or set(name) & set("@/\\"):
            raise ConfigError(
                f"{place!r} is no library: write FOLDER, or NAME=FOLDER with a name without @ and slashes"
            )
        if name in found:
            raise ConfigError(f"two libraries are named {name!r}: write NAME={folder} for one of them")
        found[name] = folder
    return found


@dataclass
class ServedLibrary:
    """One library that is served."""

    name: str
    rag: SacRag
    folders: tuple[str, ...] = ()
    """What `sync` brings it up to."""
    writer: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(max_workers=1, thread_name_prefix="sac-writer")
    )

    @property
    def is_whole(self) -> bool:
        """Whether it is one library, which may be changed, and not several read as one."""
        return len(self.rag.library.parts) == 1

    async def change(self, work: Callable[[], T]) -> T:
        """Run what changes this library, after all that was asked for before; also when its client has gone."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self.writer, work))

    def where(self, key: Key, where: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """What a request of this key may see."""
        return all_of(key.where, where)


class ServedLibraries(Mapping[str, ServedLibrary]):
    """Libraries by name."""

    def __init__(self, served: Iterable[ServedLibrary]) -> None:
        self._all = {s.name: s for s in served}

    def __getitem__(self, name: str) -> ServedLibrary:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def of(self, key: Key) -> list[ServedLibrary]:
        """Those that a key may use."""
        return [s for s in self._all.values() if key.libraries is None or s.name in key.libraries]

    def library(self, name: str, key: Key, right: str = "read") -> ServedLibrary:
        """A library by name; one that the key may not use is not there. ApiError 404 and 403."""
        mine = {s.name: s for s in self.of(key)}
        if name not in mine:
            known = ", ".join(mine) or "none"
            raise ApiError(
                404, "model_not_found", f"no library {name!r} here; this key may use: {known}", param="model"
            )
        if right not in key.rights:
            raise ApiError(403, "forbidden", f"key {key.name!r} may not {right} (its rights: {', '.join(key.rights)})")
        return mine[name]

    def model(self, name: str, key: Key) -> ServedLibrary:
        """A library by `library` or `model@library`; the model must be the one that it was made with."""
        model, sign, library = name.rpartition("@")
        found = self.library(library if sign else name, key)
        own = model_name(found.rag)
        if sign and model != own:
            message = f"library {library!r} is read by {own!r}, not {model!r}: its memories fit no other model"
            raise ApiError(404, "model_not_found", message, param="model")
        return found

    def close(self) -> None:
        """Wait for changes under way, then let go of the libraries."""
        for served in self._all.values():
            served.writer.shutdown(wait=True, cancel_futures=True)
        for served in self._all.values():
            served.rag.close()


def model_name(rag: SacRag) -> str:
    """The base model's name; of a folder or file, its last part."""
    return Path(rag.model_name).name
