"""`sac doctor`, `sac pack` and `sac unpack` from the shell."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cli_toys import Sac


def findings(out: str) -> dict[str, dict[str, str]]:
    return {f["what"]: f for f in json.loads(out)["findings"]}


def test_a_sound_machine_and_library(sac: Sac, library: str) -> None:
    result = sac("doctor", library, "--json")
    found = findings(result.out)
    assert result.code == 0
    assert {"python", "packages", "processor", "threads", "devices", "cache", "network", "library", "gate"} <= set(
        found
    )
    assert found["library"]["state"] == found["gate"]["state"] == found["packages"]["state"] == "ok"
    assert found["library"]["said"].startswith("2 documents") and "torch 2" in found["packages"]["said"]


def test_what_will_fail_is_said_and_ends_with_1(sac: Sac, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sac_rag.answer.gate.STORED", -1.0)
    result = sac("doctor", library, "--json")
    assert result.code == 1 and findings(result.out)["gate"]["state"] == "bad"
    assert "stored memories are not what this model writes" in findings(result.out)["gate"]["said"]
    none = sac("doctor", "no.lib", "--json")
    assert none.code == 1 and findings(none.out)["library"]["state"] == "bad"


def test_settings_of_the_network_are_named(sac: Sac) -> None:
    assert findings(sac("doctor", "--json", SAC_OFFLINE="1").out)["network"]["said"] == "SAC_OFFLINE=1"


def test_a_library_travels_as_one_file(sac: Sac, library: str) -> None:
    packed = json.loads(sac("pack", "my.pack", "--library", library, "--json").out)
    assert set(packed) == {"sha256", "size", "generation", "documents", "passages", "fingerprint"}
    assert packed["sha256"] == hashlib.sha256(Path("my.pack").read_bytes()).hexdigest() and packed["documents"] == 2
    assert json.loads(sac("unpack", "my.pack", "other.lib", "--sha256", packed["sha256"], "--json").out) == packed
    assert sac("ls", "--library", "other.lib").out == sac("ls", "--library", library).out
    again = sac("unpack", "my.pack", "other.lib")
    assert again.code == 2 and "there already" in again.err
    assert sac("unpack", "my.pack", "third.lib", "--sha256", "0" * 64).code == 1
