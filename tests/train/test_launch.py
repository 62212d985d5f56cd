"""Processes that train as one are started, heard and ended together. What they compute is in test_team.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sac_rag.errors import ConfigError, TrainingError
from sac_rag.train import launch
from sac_rag.train.launch import processes_for, together

ROOT = Path(__file__).parents[2]


def rank() -> int:
    return int(os.environ["RANK"])


def told(*, base: int, listen, stop):
    for step in range(3):
        listen(os.environ["OMP_NUM_THREADS"], base + step)
    print("said by", rank())
    return rank(), os.environ["WORLD_SIZE"], signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def endless(*, listen, stop):
    steps = 0
    while not (stop and stop()):
        time.sleep(0.05)
        steps += 1
        listen(os.getpid())
    return steps


def failing(*, listen, stop):
    if rank() == 1:
        raise ConfigError("the value is 7; use 8")
    raise RuntimeError("Connection closed by peer")


def strange(*, listen, stop):
    class Local(Exception):
        pass

    raise Local("cannot be pickled")


def killed(*, listen, stop):
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def test_the_leader_is_heard_and_answers(monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    heard = []
    assert together(told, 3, base=10, listen=lambda *a: heard.append(a)) == (0, "3", True)
    assert [h for h in heard if h[1] == 10] and set(heard) <= {("1", n) for n in (10, 11, 12)}
    assert os.environ["OMP_NUM_THREADS"] == "7" and "OMP_WAIT_POLICY" not in os.environ and "RANK" not in os.environ
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT}
    assert capfd.readouterr().out.split("\n") == ["said by 0", ""]


def test_one_process_is_this_one(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    heard = []
    assert together(told, 1, base=1, listen=lambda *a: heard.append(a))[:2] == (0, "1")
    assert heard == [("7", 1), ("7", 2), ("7", 3)]


def test_a_request_to_stop_reaches_the_leader():
    pids = []
    assert together(endless, 1, listen=pids.append, stop=lambda: len(pids) > 2) == 3
    pids.clear()
    # The second one would never end by itself: its team ends it, here this process does.
    assert together(endless, 2, listen=pids.append, stop=lambda: len(pids) > 5) >= 1
    for pid in set(pids):
        assert ended(pid)


def test_what_is_raised_while_listening_ends_all():
    pids = []

    def listen(pid):
        pids.append(pid)
        if len(set(pids)) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together(endless, 2, listen=listen)
    assert len(set(pids)) == 2 and all(map(ended, set(pids)))


def test_what_went_wrong_is_raised_once_and_not_its_echo():
    with pytest.raises(ConfigError, match="the value is 7; use 8") as caught:
        together(failing, 2)
    assert "in failing" in caught.value.__notes__[0]
    with pytest.raises(TrainingError, match="Local: cannot be pickled"):
        together(strange, 2)


def test_a_process_that_is_killed_is_named(monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.1)
    began = time.monotonic()
    with pytest.raises(TrainingError, match="process 2 of 2 was ended from outside"):
        together(killed, 2)
    assert time.monotonic() - began < 300


def test_nobody_survives_who_started_them():
    code = (
        "from tests.train import test_launch as t; t.together(t.endless, 2, listen=lambda pid: print(pid, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = {int(parent.stdout.readline())}
        while len(pids) < 2:
            pids.add(int(parent.stdout.readline()))
        parent.kill()
    assert all(map(ended, pids))


def ended(pid: int, seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_how_many(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launch, "cores", lambda: 8)
    assert [processes_for(None, parts, "cpu") for parts in (1, 2, 8, 9)] == [1, 2, 8, 8]
    assert processes_for(9, 9, "cpu") == 9
    for asked, message in ((0, "--processes is 0"), (3, "a step has 2 micro-batches")):
        with pytest.raises(ConfigError, match=message):
            processes_for(asked, 2, "cpu")
    assert processes_for(None, 4, "meta") == processes_for(1, 4, "meta") == 1  # as any device but the CPU
    with pytest.raises(ConfigError, match="torchrun with a process for each GPU"):
        processes_for(2, 4, "meta")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes_for(None, 4, "cpu") == processes_for(4, 4, "cpu") == 1
    with pytest.raises(ConfigError, match="4 were started already"):
        processes_for(2, 4, "cpu")


def test_cores_are_counted_once(monkeypatch):
    assert 1 <= launch.cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert launch.cores() == os.cpu_count()
