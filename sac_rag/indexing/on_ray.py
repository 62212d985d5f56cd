"""Makers on a Ray cluster: actors that hold the models, and one writer that takes in what they made.

What travels is text and bytes: an order as JSON out, finished segment files back, so that no file system is shared.
Restarting actors and trying again what they were at is Ray's; an order is a pure function, so a kill costs time alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sac_rag.errors import ConfigError, SacError
from sac_rag.indexing.make import Maker, MakeResult, Work
from sac_rag.library import made as segments

if TYPE_CHECKING:
    from sac_rag.indexing.makers import Heard, Ready
    from sac_rag.indexing.plan import Order

ADDRESS = "RAY_ADDRESS"
"""The variable of the environment that names a cluster; without it one is started on this machine, and ended."""
RETRIES = 3
"""How often an order is tried again whose actor died, and an actor started again."""
TOLD_EVERY = 1.0
"""Seconds of waiting for an order after which whoever listens is told that it is under way."""


@dataclass(frozen=True)
class RayWorkers:
    """Actors of one thread each, and of one GPU each where `gpu` is set.

    target: "module:function" of `function(setup, folder, codec_state) → Maker`, which every node can import. setup:
    JSON values. codec_state: what the library's codec was fitted to.
    """

    count: int
    target: str
    setup: Mapping[str, Any]
    codec_state: bytes | None = None
    gpu: bool = False

    def start(self, maker: Maker, ready: Ready, heard: Heard) -> OnRay:
        """maker: as the actors make; it says where finished files belong."""
        return OnRay(self, maker, ready, heard)


class MakerActor:
    """What lives in the cluster. Models are loaded with the first order, so that an error of theirs is that order's."""

    def __init__(self, target: str, setup: str, codec_state: bytes | None) -> None:
        self._how, self._folder = (target, setup, codec_state), tempfile.TemporaryDirectory(prefix="sac-")
        self._maker: Maker | None = None

    def make(self, work: str) -> tuple[str, list[bytes]]:
        """A `MakeResult` for a `Work`, both in JSON, and the bytes of its segments."""
        folder = Path(self._folder.name)
        if self._maker is None:
            target, setup, codec_state = self._how
            module, _, function = target.partition(":")
            self._maker = getattr(importlib.import_module(module), function)(json.loads(setup), folder, codec_state)
        made = self._maker.make(Work.from_mapping(json.loads(work)))
        data = [(folder / segment.name).read_bytes() for segment in made.segments]
        segments.discard(folder, made.segments)
        return json.dumps(made.to_mapping()), data


class OnRay:
    """Hands orders to actors. No more than one an actor and one are under way or wait for an earlier one."""

    def __init__(self, workers: RayWorkers, maker: Maker, ready: Ready, heard: Heard) -> None:
        self._workers, self._folder, self._ready, self._heard = workers, maker.folder, ready, heard
        self._orders: deque[Order] = deque()
        """Given and not ready, oldest first."""
        self._stack = contextlib.ExitStack()
        self._pool: Any = None

    def give(self, order: Order) -> None:
        self._orders.append(order)
        if order.compress or order.embed:
            work = json.dumps(order.work().to_mapping())
            self._pool.submit(lambda actor, work: actor.make.remote(work), work)
        while len(self._orders) > self._workers.count + 1:
            self._hand_over()

    def finish(self) -> None:
        while self._orders:
            self._hand_over()

    def _hand_over(self) -> None:
        """Wait for the oldest order, and pass it on."""
        order = self._orders[0]
        made = self._received(order) if order.compress or order.embed else MakeResult()
        self._heard(order, "compressing", len(order.compress))
        self._ready(self._orders.popleft(), made)

    def _received(self, order: Order) -> MakeResult:
        from ray.exceptions import RayActorError, RayTaskError

        while True:
            try:
                told, data = self._pool.get_next(timeout=TOLD_EVERY)
                break
            except TimeoutError:
                self._heard(order, "compressing", 0)
            except RayTaskError as error:
                if isinstance(error.cause, SacError):
                    raise error.cause from error
                raise SacError(f"compressing documents failed on the cluster: {error}") from error
            except RayActorError as error:
                raise SacError(
                    f"a worker on Ray that compressed documents died {RETRIES + 1} times over one order, perhaps for "
                    f"lack of memory: what is committed stays, and the same command goes on from there ({error})"
                ) from error
        made = MakeResult.from_mapping(json.loads(told))
        kept = [segments.receive(self._folder, s, d) for s, d in zip(made.segments, data, strict=True)]
        return replace(made, segments=tuple(kept))

    def __enter__(self) -> OnRay:
        ray = self._stack.enter_context(_cluster(self._workers.count))
        from ray.util import ActorPool

        w = self._workers
        kind = ray.remote(MakerActor).options(
            num_cpus=1, num_gpus=int(w.gpu), max_restarts=RETRIES, max_task_retries=RETRIES
        )
        how = (w.target, json.dumps(w.setup), w.codec_state)
        actors = [kind.remote(*how) for _ in range(w.count)]
        for actor in actors:
            self._stack.callback(ray.kill, actor)
        self._pool = ActorPool(actors)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()


@contextlib.contextmanager
def _cluster(cpus: int) -> Iterator[Any]:
    """Ray, connected; what was started here ends here. Raises ConfigError without it, SacError where it cannot be
    reached."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of what is done here is told to anybody
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "the engine 'ray' needs the package ray: pip install 'sac-rag[ray]', or leave the engine out"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get(ADDRESS, "local")
    here: dict[str, Any] = {}
    if address == "local":
        path = os.pathsep.join(os.path.abspath(p) for p in sys.path)
        here = {"num_cpus": cpus, "include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except (OSError, RuntimeError, ValueError) as error:
        raise SacError(f"no Ray cluster at {ADDRESS}={address}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
