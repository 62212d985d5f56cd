"""Compressing on a Ray cluster of two workers: ids and bytes of one process, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason='a cluster is an extra: pip install "sac-rag[ray]"')

from sac_rag import SacRag
from sac_rag.errors import ConfigError, LibraryMismatch, SacError
from sac_rag.indexing import on_ray
from sac_rag.maker import setup_of
from tests.indexing.test_workers import docs, everything, one_thread

__all__ = ["docs", "one_thread"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests of this file: starting it takes seconds."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_worker_niceness", "0")  # beside other tests its actors would wait for ever
        with on_ray._cluster(2):
            yield


def actors() -> list[int]:
    """Process ids of our actors in the cluster that this process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"ray::MakerActor" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if os.getpid() in ancestors(pid)]


def ancestors(pid: int) -> list[int]:
    above = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        above.append(pid)
    return above


def test_two_actors_store_the_files_of_one_process(docs, tiny_config, tmp_path, one_thread) -> None:
    with SacRag.index(docs, tmp_path / "here", tiny_config) as rag:
        added = rag.report.added
    steps: list[tuple[float, int]] = []

    def listen(report: Any) -> None:
        steps.append((report.done, report.passages))

    with SacRag.index(docs, tmp_path / "ray", tiny_config, workers=2, engine="ray", listen=listen) as rag:
        assert rag.library.verify() == [] and rag.report.added == added == 11
        assert steps == sorted(steps) and steps[-1][1] == rag.report.passages > 0
    assert everything(tmp_path / "ray") == everything(tmp_path / "here")
    assert not list((tmp_path / "ray").glob("made-*"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="actors are found in /proc")
def test_a_killed_worker_costs_time_alone(docs, tiny_config, tmp_path, one_thread) -> None:
    SacRag.index(docs, tmp_path / "here", tiny_config).close()
    killed: list[int] = []

    def listen(report: Any) -> None:
        if report.step == "storing" and report.done >= 2 * (len(killed) + 1) and len(killed) < 2 and (pids := actors()):
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

    with SacRag.index(docs, tmp_path / "ray", tiny_config, workers=2, engine="ray", listen=listen) as rag:
        assert rag.library.verify() == []
    assert len(set(killed)) == 2
    assert everything(tmp_path / "ray") == everything(tmp_path / "here")
    assert not list((tmp_path / "ray").glob("made-*"))


def dying(setup: Any, folder: Path, codec_state: bytes | None) -> Any:
    os._exit(1)


def test_an_order_that_kills_whoever_makes_it_ends_the_run(docs, tiny_config, tmp_path, monkeypatch) -> None:
    with SacRag.index([], tmp_path / "a", tiny_config) as rag:
        monkeypatch.setattr("sac_rag.pipeline.RayWorkers", lambda count, target, *rest: _workers(count, *rest))
        with pytest.raises(SacError, match="died 4 times over one order"):
            rag.add(docs, workers=1, engine="ray")
        assert rag.library.verify() == [] and rag.stats().passages == 0
    assert not list((tmp_path / "a").glob("made-*"))


def _workers(count: int, *rest: Any) -> on_ray.RayWorkers:
    return on_ray.RayWorkers(count, f"{__name__}:dying", *rest)


def test_what_a_worker_raises_is_raised_here(docs, tiny_config, tmp_path, monkeypatch) -> None:
    with SacRag.index([], tmp_path / "a", tiny_config) as rag:
        wrong = {**setup_of(rag.library, rag.config, device="cpu", dtype="float32")}
        wrong["fingerprint"] = {**wrong["fingerprint"], "ratio": 9.0}
        monkeypatch.setattr("sac_rag.pipeline.setup_of", lambda *_, **__: wrong)
        with pytest.raises(LibraryMismatch, match=r"ratio is 9\.0 there"):
            rag.add(docs, workers=2, engine="ray")


def test_engines_by_name(docs, tiny_config, tmp_path) -> None:
    with SacRag.index([], tmp_path / "a", tiny_config) as rag:
        with pytest.raises(ConfigError, match="engine is 'spark'; use processes or ray"):
            rag.add(docs, engine="spark")
        with pytest.raises(ConfigError, match="workers is 0"):
            rag.add(docs, workers=0, engine="ray")
    from sac_cli.main import run

    library = ["--library", str(tmp_path / "a")]
    assert run(["index", str(docs), *library, "--engine", "spark"]) == 2
    assert run(["index", str(docs / "1.md"), *library, "--engine", "ray", "--workers", "1"]) == 0
    with SacRag.open(tmp_path / "a") as rag:
        assert [d.uri for d in rag.library.documents()] == ["docs/1.md"]


def test_a_segment_that_came_short_is_refused(tiny_config, tmp_path) -> None:
    from sac_rag.errors import LibraryError
    from sac_rag.library import made

    with pytest.raises(LibraryError, match="10 bytes came as 3"):
        made.receive(tmp_path, made.MadeSegment("made-1-1.safetensors", 10, 8, "00", ()), b"abc")
    assert not list(tmp_path.iterdir())
