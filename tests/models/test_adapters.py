"""Where adapters are looked for, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sac_rag.errors import AdapterError
from sac_rag.models import adapters
from sac_rag.models.adapters import CARD, WEIGHTS, adapter_slug, find_adapter, shipped_adapters


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(b"")
    (folder / CARD).write_text("{}")
    return folder


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(adapters, "SHIPPED", tmp_path / "shipped")
    return make(tmp_path / "shipped" / "owner--llama-1b" / "sac")


def test_default_is_the_shipped_one(shipped: Path) -> None:
    assert find_adapter("Owner/Llama-1B", "sac") == shipped
    assert shipped_adapters() == [("owner--llama-1b", "sac")]


def test_no_adapter_for_this_base_or_method(shipped: Path) -> None:
    with pytest.raises(AdapterError, match=r"'other'.*'sac'.*shipped: owner--llama-1b with sac.*sac train"):
        find_adapter("other", "sac")
    with pytest.raises(AdapterError, match="method 'icae'"):
        find_adapter("Owner/Llama-1B", "icae")


def test_the_wheel_leaves_out_what_only_evaluation_reads() -> None:
    """By the builder's own list of files, made without building anything."""
    from hatchling.builders.wheel import WheelBuilder

    root = Path(__file__).parents[2]
    wheel = WheelBuilder(str(root))
    held = {file.distribution_path: Path(file.path) for file in wheel.recurse_included_files()}
    cards = [Path(path).relative_to("sac_rag/models/adapters") for path in held if path.endswith(CARD)]
    assert {path.parts[:-1] for path in cards} == {("smollm2-135m-instruct", "sac")}
    assert set(shipped_adapters()) == {("smollm2-135m-instruct", "sac"), *adapters.IN_CLONES}
    assert "sac_rag/train/recipes.toml" in held and {"sac_cli/main.py", "sac_rag/py.typed"} <= set(held)
    assert sum(path.stat().st_size for path in held.values()) < 30e6


@pytest.mark.parametrize(("base", "method"), shipped_adapters())
def test_cards_of_adapters_that_ship_hold_the_hashes_of_what_they_describe(base: str, method: str) -> None:
    from sac_rag.compress.adapter import Card

    folder = adapters.SHIPPED / base / method
    card = Card.read(folder)
    wanted = {"tensors": adapters.adapter_sha256(folder), "fields": card.hash_of_fields()}
    assert card.hashes == wanted, f"write it again: dataclasses.replace(card, hashes={wanted}).write(folder)"


def test_without_a_clone_it_is_said_where_the_ceiling_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda self: False)
    where = "clone it and pass its folder sac_rag/models/adapters/smollm2-135m-instruct/full-ft, or `sac train --recipe"
    with pytest.raises(AdapterError, match=where):
        find_adapter("smollm2-135m-instruct", "full-ft")


def test_a_folder_of_the_user(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine")
    assert find_adapter("any", "sac", str(folder)) == folder
    (folder / CARD).unlink()
    with pytest.raises(AdapterError, match=r"lacks card\.json"):
        find_adapter("any", "sac", str(folder))
    with pytest.raises(AdapterError, match="no adapter folder"):
        find_adapter("any", "sac", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "..", "", "a/../b", "C:\\x"])
def test_names_cannot_leave_the_folder(name: str) -> None:
    slug = adapter_slug(name)
    assert slug and not slug.startswith(".") and "/" not in slug and "\\" not in slug
