"""Every policy of the table: what it says a memory takes up is what composing it takes up."""

from __future__ import annotations

import itertools

import pytest
import torch

from sac_rag.compress.anchor_kv import AnchorKV, Slots
from sac_rag.compress.placing import ORDERS, PLACINGS, Placing, compose
from sac_rag.config import AskConfig
from sac_rag.errors import AdapterError, ConfigError

INV_FREQ = torch.tensor([1.0, 0.1])


def memory(runs: list[list[int]], source_len: int) -> AnchorKV:
    slots = Slots.of([torch.tensor(r, dtype=torch.int64) for r in runs], 1, len(runs))
    keys = torch.randn(slots.positions.numel(), 4, generator=torch.Generator().manual_seed(source_len))
    return AnchorKV(keys, keys + 1, slots.positions, slots.counts, source_len).validate()


MEMORIES = [memory([[0, 2, 5], [1]], 7), memory([[3], [3]], 9), memory([[0, 1, 2, 3], [0, 1, 2, 3]], 4)]


@pytest.mark.parametrize("positions", PLACINGS)
@pytest.mark.parametrize("start", [0, 11])
def test_a_memory_takes_up_what_its_policy_says(positions: str, start: int) -> None:
    placing = Placing(positions)
    sizes = [placing.extent(m.anchors, m.source_len) for m in MEMORIES]
    assert placing.span(MEMORIES) == sum(sizes) and placing.span([]) == 0
    places, following = placing.places(MEMORIES)
    starts = [0, *itertools.accumulate(sizes)]
    for m, at, first, size in zip(MEMORIES, places, starts, sizes, strict=False):
        assert at.shape == m.positions.shape
        assert first <= int(at.min()) and int(at.max()) < first + max(size, 1)
    assert following == starts[-1]
    joined = compose(MEMORIES, INV_FREQ, placing=placing, start=start)
    assert (joined.start, joined.next_position, joined.source_len) == (start, start + sum(sizes), 20)


def test_a_card_leaves_out_what_its_method_was_made_for() -> None:
    packed = Placing(positions="packed", prior=0.5)
    assert Placing.from_mapping({}) == Placing() and Placing.from_mapping({}, packed) == packed
    assert Placing.from_mapping({"prior": 0.0}, packed) == Placing("packed")
    assert Placing.from_mapping(packed.unusual()) == packed and Placing().unusual() == {}
    with pytest.raises(AdapterError, match=r"unknown fields \['orders'\]"):
        Placing.from_mapping({"orders": "best-last"})


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"placing": "packd"}, "unknown placing 'packd'. Did you mean 'packed'"),
        ({"order": "odd"}, "order is 'odd'; use best-last or best-first"),
        ({"prior": -0.1}, "prior is -0.1"),
        ({"prior": float("inf")}, "prior is inf"),
    ],
)
def test_a_question_overrides_by_what_there_is(asked: dict[str, object], words: str) -> None:
    own = Placing(order="best-first", prior=0.2)
    assert own.overridden(AskConfig()) == own
    for name in ORDERS:
        assert own.overridden(AskConfig(order=name, prior=0.0)) == Placing(order=name)
    with pytest.raises(ConfigError, match=words):
        own.overridden(AskConfig(**asked))  # type: ignore[arg-type]
