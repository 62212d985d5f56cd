"""Adapters that somebody sent: a card of anything is an AdapterError, before anything large is made."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sac_rag.answer.confidence import Thresholds
from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.layout import MAX_CHARS
from sac_rag.errors import AdapterError, ConfigError, SacError
from sac_rag.models.adapters import adapter_sha256
from sac_rag.models.loading import load_base

DEEP = "[" * 50_000 + "]" * 50_000


@pytest.fixture
def foreign(tiny_adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_adapter, tmp_path / "foreign"))


def say(folder: Path, **changes: Any) -> None:
    """As whoever makes an adapter may: without the hashes, which are against rot."""
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "hashes": {}, **changes}))


def load(folder: Path, base: Path) -> None:
    import torch

    model, tokenizer = load_base(base, torch.device("cpu"), torch.float32)
    adapter.load(folder, model, tokenizer)


def lora(**changes: Any) -> dict[str, Any]:
    return {"lora": {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"], **changes}}


@pytest.mark.parametrize(
    "changes",
    [
        lora(rank=4.5),
        lora(rank="4"),
        lora(rank=True),
        lora(rank=None),
        lora(rank=0),
        lora(rank=-1),
        lora(rank=10**30),
        lora(alpha="x"),
        lora(alpha=None),
        lora(alpha=0),
        lora(alpha=-5),
        lora(alpha=1e300),
        lora(alpha=[8]),
        lora(alpha=True),
        lora(targets="q_proj"),
        lora(targets=["q_proj", "q_proj"]),
        lora(targets=["os.system"]),
        lora(targets=[["q_proj"]]),
        lora(targets=[5]),
        lora(targets=[]),
        lora(targets=5),
        lora(targets={"q_proj": 1}),
        lora(whole="yes"),
        lora(more=1),
        {"lora": "large"},
        {"lora": ["rank"]},
        {"base": 5},
        {"base_fingerprint": None},
        {"method": ["sac"]},
        {"ratios": "5"},
        {"ratios": 5},
        {"ratios": ["5"]},
        {"ratios": [True]},
        {"ratios": [0]},
        {"ratios": [-5]},
        {"ratios": [10**400]},
        {"ratios": [[5]]},
        {"ratios": {"5": 1}},
        {"options": []},
        {"options": {"selector": 5}},
        {"options": {"selector": ["uniform"]}},
        {"options": {"sharpness": "x"}},
        {"options": {"sharpness": True}},
        {"options": {"causal": "yes"}},
        {"options": {"learn_prefix": 1}},
        {"options": {"budget": {}}},
        {"options": {"more": 1}},
        {"layout": "prefix"},
        {"layout": {"prefix": 5}},
        {"layout": {"prefix": "a" * (MAX_CHARS + 1)}},
        {"layout": {"prefix": "word " * 20_000}},
        {"layout": {"after": "a" * 1_000_000}},
        {"layout": {"more": "a"}},
        {"training": 5},
        {"metrics": []},
        {"calibration": 5},
        {"calibration": []},
        {"licence": 5},
        {"version": "1"},
        {"version": True},
        {"version": 1.0},
        {"more": 1},
    ],
)
def test_cards_of_anything(foreign: Path, tiny_base: Path, changes: dict[str, Any]) -> None:
    say(foreign, **changes)
    with pytest.raises(AdapterError):
        load(foreign, tiny_base)


@pytest.mark.parametrize("method", ["os.system", "sac_rag.compress.methods.sac:Sac", "", "../sac"])
def test_methods_are_names_of_ours(foreign: Path, tiny_base: Path, method: str) -> None:
    say(foreign, method=method)
    with pytest.raises(ConfigError, match="unknown method"):
        load(foreign, tiny_base)


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"version": 1, "metrics": ' + DEEP + "}",
        '{"version": 1, "base": NaN}',
        '{"version": 1, "ratios": [1e999]}',
        "",
        "[]",
        "null",
        "5",
        '"card"',
        '{"version": ' + "9" * 5000 + "}",
        "\udcff",
        "{" * 100,
    ],
)
def test_cards_that_are_none(foreign: Path, text: str) -> None:
    (foreign / "card.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(AdapterError):
        Card.read(foreign)


@pytest.mark.parametrize("kind", ["zero", "fifo", "folder", "sparse", "loop"])
@pytest.mark.parametrize("name", ["card.json", "adapter.safetensors"])
def test_files_that_are_none(foreign: Path, tiny_base: Path, name: str, kind: str) -> None:
    path = foreign / name
    path.unlink()
    if kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    with pytest.raises(AdapterError):
        load(foreign, tiny_base)
    if name == "adapter.safetensors":
        with pytest.raises(AdapterError):
            adapter_sha256(foreign)


def test_a_rank_that_its_weights_do_not_have_is_refused_before_it_is_made(
    foreign: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made")

    monkeypatch.setattr(adapter, "build", never)
    say(foreign, **lora(rank=1024, targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]))
    with pytest.raises(AdapterError, match=r"by its card it has at least"):
        load(foreign, tiny_base)


@pytest.mark.parametrize(
    "entry",
    [5, [], "x", {}, {"abstain": 5}, {"abstain": {"memory": "x", "text": None}, "fallback": None}, DEEP]
    + [
        {"abstain": {"memory": m, "text": None}, "fallback": f}
        for m, f in ((1, None), (None, "x"), ([], None), ({}, 1))
    ],
)
def test_calibrations_of_anything(foreign: Path, entry: Any) -> None:
    say(foreign, calibration={"5": entry})
    with pytest.raises(AdapterError):
        Thresholds.of(foreign, 5.0)


def test_what_is_right_is_taken(foreign: Path, tiny_base: Path) -> None:
    load(foreign, tiny_base)
    say(foreign, layout={"prefix": "a" * 200}, metrics={"f1": 0.5}, ratios=[5, 15.0], calibration={})
    with pytest.raises(SacError):  # another prefix has other tensors
        load(foreign, tiny_base)
    assert Card.read(foreign).ratios == (5.0, 15.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card["layout"].update(prefix=card["layout"]["prefix"] + " "),
        lambda card: card["layout"].update({name: text.upper() for name, text in card["layout"].items()}),
        lambda card: card["lora"].update(alpha=card["lora"]["alpha"] + 1),
        lambda card: card["placing"].update(order="rank"),
        lambda card: card.update(ratios=[5.5]),
        lambda card: card.update(method="sad"),
        lambda card: card["hashes"].update(fields="0" * 64),
        lambda card: card["hashes"].update(fields=5),
    ],
)
def test_a_field_that_rotted_is_told(foreign: Path, change: Callable[[dict[str, Any]], None]) -> None:
    card = json.loads((foreign / "card.json").read_text())
    change(card)
    (foreign / "card.json").write_text(json.dumps(card))
    with pytest.raises(AdapterError, match=r"card\.json is not as it was written .*copy the adapter again"):
        Card.read(foreign)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_tensor_that_rotted_is_told(foreign: Path, tiny_base: Path, place: float) -> None:
    path = foreign / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    data[begin + int(place * (len(data) - begin))] ^= 1
    path.write_bytes(data)
    with pytest.raises(AdapterError, match=r"adapter\.safetensors is not the file that its card names"):
        load(foreign, tiny_base)


def test_cards_of_before_load_and_notes_beside_the_tensors_may_change(foreign: Path, tiny_base: Path) -> None:
    card = Card.read(foreign)
    assert set(card.hashes) == {"tensors", "fields"}
    dataclasses.replace(card, calibration={"5": {"fallback": -1.0}}, licence="CC0", base="other").write(foreign)
    again = Card.read(foreign)
    assert again.hashes == card.hashes and again.licence == "CC0"
    load(foreign, tiny_base)
    values = json.loads((foreign / "card.json").read_text())
    del values["hashes"]
    (foreign / "card.json").write_text(json.dumps(values))
    assert Card.read(foreign).hashes == {}
    load(foreign, tiny_base)
