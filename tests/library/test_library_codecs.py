"""Law 5: codec error is bounded, and what bounds it survives storing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from library_support import memory_of, passages_of, same, vector_of

from sac_rag.compress.anchor_kv import AnchorKV, Slots
from sac_rag.errors import ConfigError, LibraryCorrupt, MemoryInvalid
from sac_rag.library.codecs import CODECS, get_codec, is_fitted, pack, unpack
from sac_rag.library.library import Library
from sac_rag.records import Document

PLAIN = ("bf16", "int8")
BOTH = pytest.mark.parametrize("name", PLAIN)
UNFITTED = pytest.mark.parametrize("name", [*PLAIN, "int4"])


def kv(keys: torch.Tensor, values: torch.Tensor | None = None) -> AnchorKV:
    """The same tokens in all heads; keys and values (layers, kv_heads, anchors, head_dim)."""
    anchors = keys.shape[2]
    return AnchorKV.even(keys, keys.clone() if values is None else values, torch.arange(anchors) * 2, anchors * 2)


def uneven(counts: list[list[int]], scale: float = 1.0, dtype: torch.dtype = torch.float32, seed: int = 0) -> AnchorKV:
    """Runs of these lengths, each of random tokens of the same passage, channels of different magnitudes."""
    g = torch.Generator().manual_seed(seed)
    tokens = 3 * max(map(max, counts))
    runs = [torch.randperm(tokens, generator=g)[:n].sort().values for row in counts for n in row]
    slots = Slots.of(runs, len(counts), len(counts[0]))
    loud = torch.rand(len(runs), 1, generator=g)[slots.runs()] * scale * torch.logspace(-3, 3, 8)
    keys, values = ((torch.randn(len(slots.positions), 8, generator=g) * loud).to(dtype) for _ in range(2))
    return AnchorKV(keys, values, slots.positions, slots.counts, tokens).validate()


def through(name: str, memory: AnchorKV) -> tuple[AnchorKV, dict[str, torch.Tensor]]:
    """Encoded, turned into bytes and back, decoded: what storing does."""
    codec = get_codec(name)
    layout, chunks = pack(codec.encode(memory))
    tensors = unpack(bytearray(b"".join(chunks)), [list(entry) for entry in layout])
    return codec.decode(tensors), tensors


def bound(name: str, x: torch.Tensor, tensors: dict[str, torch.Tensor], which: str) -> torch.Tensor:
    """Largest error allowed for each number of x (slots, head_dim)."""
    if name == "bf16":
        return x.float().abs() * 2**-8 + 1e-38
    if name == "int4":  # groups are padded with what stands beside, so that they reach no further
        groups = x.float().split(32, dim=1)
        reach = torch.cat([(g.amax(1, True) - g.amin(1, True)).expand_as(g) for g in groups], 1)
        most = torch.cat([g.abs().amax(1, True).expand_as(g) for g in groups], 1)
        return reach / 15 * (0.5 + 2**-6) + most * 2**-10 + 1e-6
    scales = iter(tensors[f"{which}_scales"].float())
    rows = [next(scales).expand(n, -1) for n in tensors["counts"].flatten().tolist() if n]
    assert next(scales, None) is None
    return torch.cat(rows) * (0.5 + 1e-5)


@BOTH
@given(
    scale=st.sampled_from([1e-30, 1e-8, 1e-4, 1.0, 300.0, 6e4, 1e7, 1e30]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    anchors=st.integers(1, 7),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_error_is_bounded(name: str, scale: float, dtype: torch.dtype, anchors: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    keys = (torch.randn(2, 2, anchors, 8, generator=g) * scale).to(dtype)
    values = (torch.randn(2, 2, anchors, 8, generator=g) * torch.logspace(-3, 3, 8)).to(dtype)
    memory = kv(keys, values)
    out, tensors = through(name, memory)
    assert_close(name, memory, out, tensors)


def assert_close(name: str, memory: AnchorKV, out: AnchorKV, tensors: dict[str, torch.Tensor]) -> None:
    for which, before, after in (("key", memory.keys, out.keys), ("value", memory.values, out.values)):
        error = (after.float() - before.float()).abs()
        assert bool((error <= bound(name, before, tensors, which)).all())
    assert torch.equal(out.positions, memory.positions) and torch.equal(out.counts, memory.counts)
    assert out.source_len == memory.source_len


COUNTS = st.tuples(st.integers(1, 4), st.integers(1, 3)).flatmap(
    lambda shape: st.lists(
        st.lists(st.sampled_from([0, 0, 1, 2, 9]), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@BOTH
@given(
    counts=COUNTS.filter(lambda counts: any(map(any, counts))),
    scale=st.sampled_from([1e-4, 1.0, 1e7]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_uneven_memories_keep_their_runs(
    name: str, counts: list[list[int]], scale: float, dtype: torch.dtype, seed: int
) -> None:
    memory = uneven(counts, scale, dtype, seed)
    out, tensors = through(name, memory)
    assert_close(name, memory, out, tensors)
    assert out.counts.tolist() == counts
    if (name, dtype) == ("bf16", torch.bfloat16):
        assert same(out, memory)


def test_the_scales_of_a_run_are_its_own() -> None:
    memory = uneven([[3, 0], [1, 4]])
    keys = memory.keys.clone()
    keys[3:] *= 10
    (a, _), (b, tensors) = through("int8", memory), through("int8", replace(memory, keys=keys))
    assert torch.equal(a.keys[:3], b.keys[:3])
    assert tensors["key_scales"].shape == (3, 8)


@BOTH
@pytest.mark.parametrize(("tokens", "dtype"), [(32767, torch.int16), (32768, torch.int32)])
def test_places_take_two_bytes_where_they_fit(name: str, tokens: int, dtype: torch.dtype) -> None:
    whole = torch.zeros(tokens, 1)
    memory = AnchorKV(whole, whole, torch.arange(tokens), torch.tensor([[tokens, 0]]), tokens)
    out, tensors = through(name, memory)
    assert tensors["positions"].dtype == tensors["counts"].dtype == dtype
    assert torch.equal(out.positions, memory.positions) and torch.equal(out.counts, memory.counts)


def test_bf16_input_is_kept_bit_for_bit() -> None:
    memory = memory_of("0123456789ab5" + "0" * 19)
    assert same(through("bf16", memory)[0], memory)


@pytest.mark.parametrize("anchors", [1, 5])
def test_int8_is_exact_up_to_scale_rounding_for_constant_channels(anchors: int) -> None:
    channel = (torch.randn(2, 2, 1, 8) * torch.logspace(-4, 4, 8)).expand(2, 2, anchors, 8)
    out, _ = through("int8", kv(channel.contiguous()))
    # Channels below 127 * 2^-14 have subnormal float16 scales; their absolute error is what stays small.
    channel = channel.flatten(0, 2)
    error = (out.keys - channel).abs()
    assert bool((error <= channel.abs() * 2**-10 + 2**-24 * 127).all())


def test_int8_zero_channels_and_tiny_values() -> None:
    keys = torch.zeros(2, 2, 3, 8)
    keys[..., 1] = 1e-42
    out, tensors = through("int8", kv(keys))
    assert bool((out.keys[..., 0] == 0).all())
    assert bool((out.keys - keys.flatten(0, 2)).abs().max() <= tensors["key_scales"].float().max() / 2)


def test_int8_falls_back_to_float32_scales() -> None:
    assert through("int8", kv(torch.full((1, 1, 2, 4), 1e9)))[1]["key_scales"].dtype == torch.float32
    assert through("int8", kv(torch.full((1, 1, 2, 4), 1e3)))[1]["key_scales"].dtype == torch.float16


def test_int8_is_about_half_of_bf16() -> None:
    memory = kv(torch.randn(4, 3, 51, 64))
    sizes = {name: sum(len(c) for c in pack(get_codec(name).encode(memory))[1]) for name in (*PLAIN, "int4")}
    assert sizes["int8"] < 0.54 * sizes["bf16"] and sizes["int4"] < 0.34 * sizes["bf16"]


@UNFITTED
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_encode_rejects_what_is_not_finite(name: str, bad: float) -> None:
    keys = torch.randn(2, 2, 3, 8)
    keys[1, 0, 2, 3] = bad
    with pytest.raises(MemoryInvalid, match="NaN or Inf"):
        get_codec(name).encode(kv(torch.randn(2, 2, 3, 8), keys))


@pytest.mark.parametrize(("name", "value"), [("bf16", 3.4e38), ("int8", 3.4028234e38)])
def test_encode_rejects_overflow_of_its_own_format(name: str, value: float) -> None:
    keys = torch.full((1, 1, 2, 4), value)
    if name == "int8":
        out, _ = through(name, kv(keys * 0.99))
        assert bool(torch.isfinite(out.keys).all())
    else:
        with pytest.raises(MemoryInvalid, match="too large"):
            get_codec(name).encode(kv(keys))


@BOTH
def test_decode_rejects_nan_wrong_shapes_and_missing_tensors(name: str) -> None:
    codec = get_codec(name)
    good = codec.encode(kv(torch.randn(2, 2, 3, 8)))
    poisoned = "key_scales" if name == "int8" else "keys"
    for change in (
        {poisoned: torch.full_like(good[poisoned], float("nan"))},
        {poisoned: torch.full_like(good[poisoned], float("inf"))},
        {"positions": torch.tensor([2, 1, 0], dtype=torch.int32)},
        {"positions": torch.tensor([[0, 1, 2]], dtype=torch.int32)},
        {"source_len": torch.tensor([0], dtype=torch.int32)},
        {"positions": good["positions"].float()},
        {"positions": good["positions"][:-1]},
        {"source_len": torch.tensor([2], dtype=torch.int32)},
        {"source_len": good["source_len"].short()},
        {"values": good["values"][:2]},
        {"values": good["values"][:, :2]},
        {"keys": good["keys"].flatten()},
        {"keys": good["keys"].view(2, 2, 3, 8)},
        {"keys": good["keys"].short()},
    ):
        with pytest.raises(MemoryInvalid):
            codec.decode(good | change)
    for missing in good:
        with pytest.raises(MemoryInvalid, match=missing):
            codec.decode({k: v for k, v in good.items() if k != missing})


@UNFITTED
@pytest.mark.parametrize(
    "counts",
    [
        [[3, 3], [3, 2]], [[3, 3], [3, 4]], [[-3, 9], [3, 3]], [3, 3, 3, 3], [[[3, 3], [3, 3]]], [[]], [[0, 0], [0, 0]],
        [[2**31 - 1, 2**31 - 1], [2**31 - 1, 2**31 - 1]], [[2**31 - 1, 13], [-(2**31), 0]], [[1, 5], [3, 3]],
    ],
)  # fmt: skip
def test_decode_trusts_no_counts(name: str, counts: list[list[int]]) -> None:
    codec = get_codec(name)
    good = codec.encode(kv(torch.randn(2, 2, 3, 8)))
    with pytest.raises(MemoryInvalid):
        codec.decode(good | {"counts": torch.tensor(counts, dtype=torch.int32)})


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_counts_are_whole_numbers(name: str, dtype: torch.dtype) -> None:
    good = get_codec(name).encode(kv(torch.randn(2, 2, 3, 8)))
    with pytest.raises(MemoryInvalid, match="counts"):
        get_codec(name).decode(good | {"counts": good["counts"].to(dtype)})


@pytest.mark.parametrize("scales", [(3, 8), (2, 8), (4, 8), (3, 7), (3, 1), (24,), (3, 2, 4), (1, 3, 8)])
def test_int8_takes_one_scale_for_each_run_and_channel(scales: tuple[int, ...]) -> None:
    good = get_codec("int8").encode(uneven([[3, 0], [1, 4]]))
    changed = good | {"value_scales": torch.ones(scales, dtype=torch.float16)}
    if scales == (3, 8):
        assert get_codec("int8").decode(changed).counts.tolist() == [[3, 0], [1, 4]]
        changed["value_scales"] = changed["value_scales"].short()
    with pytest.raises(MemoryInvalid, match="scales"):
        get_codec("int8").decode(changed)


@pytest.mark.parametrize(
    "layout",
    [
        None, {}, [["a"]], [["a", "F64", [2]]], [["a", "I8", []]], [["a", "I8", [-4]]], [["a", "I8", [0]]],
        [["a", "I8", [1 << 40]]], [["a", "I8", [5]]], [["a", "I8", [3]]], [["a", "I8", [True]]], [["a", ["I8"], [4]]],
        [["a", "F32", [1 << 30, 1 << 30]]], [["a", "I8", [1, 1, 1, 1, 4]]], [[1, "I8", [4]]],
    ],
)  # fmt: skip
def test_unpack_trusts_no_layout(layout: object) -> None:
    with pytest.raises(LibraryCorrupt):
        unpack(bytearray(4), layout)


def test_unknown_codec_has_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'int8'"):
        get_codec("int88")


def test_a_fitted_codec_needs_what_it_was_fitted_to() -> None:
    with pytest.raises(ConfigError, match="run `sac codec FILES --write`"):
        get_codec("transform")
    with pytest.raises(LibraryCorrupt, match="does not parse"):
        get_codec("transform", b"no tensors")
    assert sorted(name for name in CODECS if is_fitted(name)) == ["transform"]


@pytest.mark.parametrize("dim", [4, 32, 40, 64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_int4_is_within_its_bound_for_any_width(dim: int, scale: float) -> None:
    g = torch.Generator().manual_seed(dim)
    memory = kv(torch.randn(2, 2, 5, dim, generator=g) * scale + scale)
    out, tensors = through("int4", memory)
    assert_close("int4", memory, out, tensors)
    again, _ = through("int4", out)
    assert torch.allclose(again.keys, out.keys, atol=scale * 2**-9)


def test_int4_refuses_what_its_groups_do_not_say() -> None:
    good = get_codec("int4").encode(uneven([[3, 0], [1, 4]]))
    for change in (
        {"keys": good["keys"][:, :-1]}, {"keys": good["keys"].char()}, {"key_scales": good["key_scales"].float()},
        {"head_dim": torch.tensor([33], dtype=torch.int32)}, {"head_dim": torch.tensor([0], dtype=torch.int32)},
        {"value_least": good["value_least"][:2]}, {"key_least": torch.full_like(good["key_least"], torch.nan)},
    ):  # fmt: skip
        with pytest.raises(MemoryInvalid):
            get_codec("int4").decode(good | change)
    with pytest.raises(MemoryInvalid, match="too large for int4"):
        get_codec("int4").encode(kv(torch.full((1, 1, 2, 4), 7e4)))


@BOTH
def test_scales_survive_reopening(name: str, folder: Path) -> None:
    passages = passages_of("d", ["word one", "word two", "word three"])
    memories = {p.id: memory_of(p.id, torch.float32) for p in passages}
    memories[passages[2].id] = uneven([[0, 7, 1], [4, 0, 0]])
    with Library.create(folder, {}, codec=name, dim=8) as library, library.transaction() as tx:
        tx.put(Document("d", ""), passages, memories, {p.id: vector_of(p.id) for p in passages})
    with Library.open(folder) as library:
        for p, loaded in zip(passages, library.load([p.id for p in passages]), strict=True):
            expected, tensors = through(name, memories[p.id])
            assert same(loaded, expected)
            error = (loaded.keys.float() - memories[p.id].keys).abs()
            assert bool((error <= bound(name, loaded.keys, tensors, "key")).all())
            assert np.isfinite(error.numpy()).all()
