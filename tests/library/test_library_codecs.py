"""Law 5: codec error is bounded, and what bounds it survives storing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from library_support import memory_of, passages_of, same, vector_of

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.errors import ConfigError, LibraryCorrupt, MemoryInvalid
from sac_rag.library.codecs import CODECS, get_codec, pack, unpack
from sac_rag.library.library import Library
from sac_rag.records import Document

BOTH = pytest.mark.parametrize("name", sorted(CODECS))


def kv(keys: torch.Tensor, values: torch.Tensor | None = None) -> AnchorKV:
    anchors = keys.shape[2]
    return AnchorKV(keys, keys.clone() if values is None else values, torch.arange(anchors) * 2, anchors * 2)


def through(name: str, memory: AnchorKV) -> tuple[AnchorKV, dict[str, torch.Tensor]]:
    """Encoded, turned into bytes and back, decoded: what storing does."""
    codec = get_codec(name)
    layout, chunks = pack(codec.encode(memory))
    tensors = unpack(bytearray(b"".join(chunks)), [list(entry) for entry in layout])
    return codec.decode(tensors), tensors


def bound(name: str, x: torch.Tensor, tensors: dict[str, torch.Tensor], which: str) -> torch.Tensor:
    """Largest error allowed for each number of x."""
    if name == "bf16":
        return x.float().abs() * 2**-8 + 1e-38
    return (tensors[f"{which}_scales"].float().unsqueeze(2) * (0.5 + 1e-5)).expand_as(x)


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
    for which, before, after in (("key", keys, out.keys), ("value", values, out.values)):
        error = (after.float() - before.float()).abs()
        assert bool((error <= bound(name, before, tensors, which)).all())
    assert torch.equal(out.positions, memory.positions)
    assert out.source_len == memory.source_len


def test_bf16_input_is_kept_bit_for_bit() -> None:
    memory = memory_of("0123456789ab5" + "0" * 19)
    assert same(through("bf16", memory)[0], memory)


@pytest.mark.parametrize("anchors", [1, 5])
def test_int8_is_exact_up_to_scale_rounding_for_constant_channels(anchors: int) -> None:
    channel = torch.randn(2, 2, 1, 8) * torch.logspace(-4, 4, 8)
    out, _ = through("int8", kv(channel.expand(2, 2, anchors, 8).contiguous()))
    # Channels below 127 * 2^-14 have subnormal float16 scales; their absolute error is what stays small.
    error = (out.keys - channel).abs()
    assert bool((error <= channel.abs() * 2**-10 + 2**-24 * 127).all())


def test_int8_zero_channels_and_tiny_values() -> None:
    keys = torch.zeros(2, 2, 3, 8)
    keys[..., 1] = 1e-42
    out, tensors = through("int8", kv(keys))
    assert bool((out.keys[..., 0] == 0).all())
    assert bool((out.keys - keys).abs().max() <= tensors["key_scales"].float().max() / 2)


def test_int8_falls_back_to_float32_scales() -> None:
    assert through("int8", kv(torch.full((1, 1, 2, 4), 1e9)))[1]["key_scales"].dtype == torch.float32
    assert through("int8", kv(torch.full((1, 1, 2, 4), 1e3)))[1]["key_scales"].dtype == torch.float16


def test_int8_is_about_half_of_bf16() -> None:
    memory = kv(torch.randn(4, 3, 51, 64))
    sizes = {name: sum(len(c) for c in pack(get_codec(name).encode(memory))[1]) for name in CODECS}
    assert sizes["int8"] < 0.54 * sizes["bf16"]


@BOTH
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
        {"values": good["values"][:, :, :2]},
    ):
        with pytest.raises(MemoryInvalid):
            codec.decode(good | change)
    for missing in good:
        with pytest.raises(MemoryInvalid, match=missing):
            codec.decode({k: v for k, v in good.items() if k != missing})


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
        get_codec("int4")


@BOTH
def test_scales_survive_reopening(name: str, folder: object) -> None:
    passages = passages_of("d", ["word one", "word two"])
    memories = {p.id: memory_of(p.id, torch.float32) for p in passages}
    with Library.create(folder, {}, codec=name, dim=8) as library, library.transaction() as tx:  # type: ignore[arg-type]
        tx.put(Document("d", ""), passages, memories, {p.id: vector_of(p.id) for p in passages})
    with Library.open(folder) as library:  # type: ignore[arg-type]
        for p, loaded in zip(passages, library.load([p.id for p in passages]), strict=True):
            expected, tensors = through(name, memories[p.id])
            assert same(loaded, expected)
            error = (loaded.keys.float() - memories[p.id].keys).abs()
            assert bool((error <= bound(name, loaded.keys, tensors, "key")).all())
            assert np.isfinite(error.numpy()).all()
