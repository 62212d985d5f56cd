"""Transform coding: its error is bounded, its integers are exact, hostile bytes are refused, and it is small."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sac_rag.compress.anchor_kv import AnchorKV, Slots, StoredKV, Take, decoders_of
from sac_rag.compress.placing import Placing, compose
from sac_rag.errors import LibraryCorrupt, MemoryInvalid
from sac_rag.library import basis as bases
from sac_rag.library import transform
from sac_rag.library.basis import UNIT, Basis, whole_axes
from sac_rag.library.frames import PER_BYTE, Expander, packed, whole_bytes
from sac_rag.library.transform import DEAD, MOST_TOKENS, Transform

LAYERS, HEADS, DIM = 3, 2, 12
"""A width that is no whole number of groups."""


def memory(seed: int, tokens: int = 60, scale: float = 1.0, dim: int = DIM) -> AnchorKV:
    """Uneven runs whose numbers vary along a few axes of each head, off their mean."""
    g = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(1)
    counts = torch.randint(0, tokens // 2, (LAYERS * HEADS,), generator=g)
    counts[seed % len(counts)] = 0
    counts[(seed + 1) % len(counts)] = tokens // 2
    runs = [torch.randperm(tokens, generator=g)[:n].sort().values for n in counts.tolist()]
    slots = Slots.of(runs, LAYERS, HEADS)
    found = []
    for _ in range(2):
        axes = torch.randn(LAYERS * HEADS, dim, dim, generator=fixed) * torch.logspace(1, -3, dim)
        mean = torch.randn(LAYERS * HEADS, dim, generator=fixed) * 3
        noise = torch.randn(len(slots.positions), dim, generator=g)
        each = slots.runs()
        found.append((torch.einsum("sd,sed->se", noise, axes[each]) + mean[each]) * scale)
    return AnchorKV(*found, slots.positions, slots.counts, tokens).validate()


@pytest.fixture(scope="module")
def basis() -> Basis:
    return Basis.from_bytes(Basis.fit([memory(seed) for seed in range(20)], step=0.3).to_bytes())


def test_axes_are_orthonormal_and_the_most_varied_first(basis: Basis) -> None:
    axes = basis.axes.float() / UNIT
    assert basis.shape == (LAYERS, HEADS, DIM) and basis.axes.dtype == torch.int8
    # Each number is off by half a unit at most.
    assert torch.allclose(axes.transpose(-1, -2) @ axes, torch.eye(DIM).expand_as(axes), atol=DIM**0.5 / UNIT)
    kv = [memory(seed) for seed in range(20)]
    for which, name in enumerate(("keys", "values")):
        whole = torch.cat([getattr(m, name).split(m.counts.flatten().tolist())[3] for m in kv])
        spread = ((whole - whole.mean(0)) @ axes[which].flatten(0, 1)[3]).var(0)
        # What the rounding of the axes lets through of the first is in all of them.
        through = float(spread[0]) * DIM / UNIT**2
        assert bool((spread[:-1] + through >= spread[1:]).all()) and spread[0] > 1e3 * spread[-1]
    variance = torch.cat([m.values for m in kv]).var()
    assert float(basis.steps[1]) < 0.3 * float(variance.sqrt()), "of what varies about each head's mean"


@given(seed=st.integers(0, 2**20), scale=st.sampled_from([1e-3, 1.0, 50.0]), low=st.booleans())
@settings(max_examples=40, deadline=None)
def test_error_is_bounded(basis: Basis, seed: int, scale: float, low: bool) -> None:
    """Also of what is unlike all that the basis was fitted on."""
    before = memory(seed, scale=scale).to(dtype=torch.bfloat16 if low else torch.float32)
    codec = Transform(basis)
    after = codec.decode(codec.encode(before))
    assert torch.equal(after.positions, before.positions) and torch.equal(after.counts, before.counts)
    assert after.source_len == before.source_len
    for which, name in enumerate(("keys", "values")):
        error = (getattr(after, name) - getattr(before, name).float()).norm(dim=1)
        most = DEAD * float(basis.steps[which]) * DIM**0.5 * (1 + 1e-2)
        assert float(error.max()) <= most + 1e-5 * float(getattr(before, name).float().abs().max())


def test_what_was_decoded_is_coded_to_the_same_bytes(basis: Basis) -> None:
    codec = Transform(basis)
    coded = codec.encode(memory(3))["coded"]
    again = codec.encode(codec.decode({"coded": coded}))["coded"]
    assert torch.equal(coded, again), "a library may be recoded without drifting"


def test_it_is_small(basis: Basis) -> None:
    """Far below bf16, and near the entropy of its integers."""
    codec, before = Transform(dataclasses.replace(basis, steps=basis.steps * 3)), memory(5, tokens=1000)
    counts = before.counts.flatten().tolist()
    bits = 0.0
    for which, tensor in enumerate((before.keys, before.values)):
        integers = codec._integers(which, tensor, counts)
        for at in range(0, len(integers), 8):
            part = integers[at : at + 8]
            share = np.unique(part, return_counts=True)[1] / part.size
            bits -= float((share * np.log2(share)).sum()) * part.size
    size = codec.encode(before)["coded"].numel()
    places = 2 * len(before.positions)
    assert size < 1.15 * bits / 8 + places
    assert size < 0.25 * (before.keys.numel() + before.values.numel()) * 2


@pytest.mark.parametrize("limit", sorted(PER_BYTE))
@pytest.mark.parametrize("slots", [1, 2, 5, 41])
def test_integers_are_packed_without_loss(limit: int, slots: int) -> None:
    parts = np.random.default_rng(slots).integers(-limit, limit + 1, (3, slots, 8))
    parts[0, 0, :2] = (limit, -limit)
    data = [packed(part, limit) for part in parts]
    assert {len(d) for d in data} == {slots * 8 // PER_BYTE[limit] if limit else 0}
    out = np.full((slots, 5, 8), 99, np.int8)
    Expander().small([zstandard.compress(d) if d else b"" for d in data], limit, out[:, 1:4])
    assert out[:, 1:4].transpose(1, 0, 2).tolist() == parts.tolist()
    assert (out[:, [0, 4]] == 99).all()


@pytest.mark.parametrize("numbers", [[0], [5, 4, 3], [-(1 << 15), (1 << 15) - 1], [1 << 15, 0, -7], [1 << 30] * 3])
def test_whole_numbers_keep_their_value_in_two_bytes_or_four(numbers: list[int]) -> None:
    data = whole_bytes(np.array(numbers))
    assert len(data) == len(numbers) * (2 if min(numbers) >= -(1 << 15) and max(numbers) < 1 << 15 else 4)
    assert Expander().whole(zstandard.compress(data), len(numbers)).tolist() == numbers


def test_outliers_are_kept(basis: Basis) -> None:
    before = memory(1)
    keys = before.keys.clone()
    keys[7] += 4e4 * float(basis.steps[0])
    codec = Transform(basis)
    after = codec.decode(codec.encode(dataclasses.replace(before, keys=keys)))
    assert torch.allclose(after.keys[7], keys[7], rtol=1e-4, atol=float(basis.steps[0]) * DIM**0.5)
    keys[7] = 3e38
    with pytest.raises(MemoryInvalid, match=r"keys are more than 2\^31 steps"):
        codec.encode(dataclasses.replace(before, keys=keys))


@pytest.mark.parametrize("exact", [True, False])
def test_a_memory_has_the_same_bits_alone_and_in_company(
    basis: Basis, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By either product of integers; and they are those of the plain formula, to rounding."""
    if exact and not bases.multiplies_int8():
        pytest.skip("this machine's kernels are not exact")
    codec, memories = Transform(basis), [memory(seed, tokens=20 + 15 * seed, scale=9.0) for seed in range(6)]
    keys = memories[3].keys.clone()
    keys[7] += 4e4 * float(basis.steps[0])
    memories[3] = dataclasses.replace(memories[3], keys=keys)
    stored = [codec.encode(m) for m in memories]
    alone = [codec.decode(s) for s in stored]
    known = [a.stored for a in alone]
    assert all(a.keys.dtype == torch.float32 and a.decoder is None for a in alone)
    monkeypatch.setattr(bases, "multiplies_int8", lambda: exact)
    inv_freq, biases = 0.3 ** torch.arange(DIM // 2), [-0.5 * n for n in range(6)]
    for at in (range(6), range(5, -1, -1), (2, 3), (3,)):
        for dtype in (torch.float32, torch.bfloat16):
            fresh, plain = [codec.decode(stored[i]) for i in at], [alone[i] for i in at]
            assert decoders_of(fresh) == {codec: [*range(len(at))]} and list(decoders_of(plain)) == [None]
            given = {"biases": biases[: len(at)], "dtype": dtype, "start": 7}
            got, want = compose(fresh, inv_freq, **given), compose(plain, inv_freq, **given)
            assert torch.equal(got.keys, want.keys) and torch.equal(got.values, want.values)
            assert torch.equal(got.counts, want.counts) and got.next_position == want.next_position
            assert len(at) == 1 or torch.equal(got.bias, want.bias)
            assert all("keys" not in vars(m) for m in fresh), "it was decoded on the way"
            # Beside memories that are not stored, such as a learned prefix, and of another library.
            other = Transform(basis)
            mixed = [plain[0], *(m.to(device="cpu") for m in fresh), *plain[1:], *(other.decode(stored[i]) for i in at)]
            got = compose(mixed, inv_freq, dtype=dtype, start=7)
            assert all("keys" not in vars(m) for m in mixed if m.decoder is not None), "it was decoded on the way"
            whole = [plain[0], *plain, *plain[1:], *plain]
            want = compose(whole, inv_freq, dtype=dtype, start=7)
            assert torch.equal(got.keys, want.keys) and torch.equal(got.values, want.values)
    for steps, found in zip(known, alone, strict=True):
        runs = found.slots.runs()
        for which, numbers in enumerate((found.keys, found.values)):
            whole = torch.from_numpy(steps.integers[which].astype(np.float64))
            slots, axes, more = steps.beyond[which]
            whole[slots, axes] += torch.from_numpy(more).double()
            axes = basis.axes[which].flatten(0, 1)[runs].double() / UNIT * basis.steps[which].double()
            plain = torch.einsum("sa,sda->sd", whole[:, :DIM], axes) + basis.means[which].flatten(0, 1)[runs].double()
            assert torch.allclose(numbers.double(), plain, rtol=1e-6, atol=1e-6 * float(plain.abs().max()))


def test_what_the_first_version_stored_is_read_to_the_same_bits() -> None:
    """A basis in float16, and bytes that hold neighbours, written by the code of then; one key lies far out."""
    from safetensors.torch import load_file

    stored = load_file(Path(__file__).parent / "transform_first.safetensors")
    codec = Transform.from_state(stored["state"].numpy().tobytes())
    assert codec.basis.axes.dtype == torch.float16
    found = codec.decode({"coded": stored["coded"]})
    assert torch.equal(found.positions, stored["positions"]) and torch.equal(found.counts, stored["counts"])
    far = (stored["keys"].abs().amax(1) > 1e3).nonzero().ravel()
    assert len(far) == 1 and torch.allclose(found.keys[far], stored["keys"][far], rtol=1e-6)
    near = [i for i in range(len(found.keys)) if i != int(far)]
    assert torch.allclose(found.keys[near], stored["keys"][near], rtol=1e-6, atol=1e-5)
    assert torch.allclose(found.values, stored["values"], rtol=1e-6, atol=1e-5)
    again = Transform(dataclasses.replace(codec.basis, axes=whole_axes(codec.basis.axes.float())))
    assert torch.allclose(again.decode(again.encode(found)).values, found.values, atol=0.1 * DIM**0.5 * 3)


def test_memories_of_another_shape_are_refused(basis: Basis) -> None:
    with pytest.raises(MemoryInvalid, match=r"\(3, 2, 16\).*does not fit \(3, 2, 12\)"):
        Transform(basis).encode(memory(1, dim=16))
    with pytest.raises(MemoryInvalid, match="no basis in common"):
        Basis.fit([memory(1), memory(2, dim=16)])
    with pytest.raises(MemoryInvalid, match="at least one"):
        Basis.fit([])


def test_every_flipped_or_lost_byte_is_an_error_or_a_whole_memory(basis: Basis) -> None:
    """Checksums stand in front of this; behind them nothing crashes, hangs or grows."""
    codec = Transform(basis)
    good = codec.encode(memory(2))["coded"]
    random = np.random.default_rng(0)
    refused = 0
    for trial in range(400):
        bad = good.clone()
        for _ in range(1 + trial % 3):
            at = int(random.integers(len(bad)) if trial % 2 else random.integers(120))
            bad[at] = int(random.integers(256))
        bad = bad[: int(random.integers(1, len(bad)))] if trial % 5 == 0 else bad
        try:
            found = codec.decode({"coded": bad})
            assert found.keys.shape == found.values.shape and bool(torch.isfinite(found.keys).all())
        except MemoryInvalid:
            refused += 1
    assert refused > 200


def test_a_frame_that_grows_is_not_read_to_its_end(basis: Basis) -> None:
    codec = Transform(basis)
    data = codec.encode(memory(2))["coded"].numpy().tobytes()
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 28))
    groups = 2 * codec._groups
    start = 12 + groups
    lengths = np.frombuffer(data, "<u4", 2 + 2 * (codec._groups + 1), start).copy()
    body = start + 4 * len(lengths)
    for frame in range(len(lengths)):
        at = body + int(lengths[:frame].sum())
        changed = lengths.copy()
        changed[frame] = len(bomb)
        whole = data[:start] + changed.tobytes() + data[body:at] + bomb + data[at + int(lengths[frame]) :]
        with pytest.raises(MemoryInvalid, match="more than its"):
            codec.decode({"coded": torch.frombuffer(bytearray(whole), dtype=torch.uint8)})


def forged(codec: Transform, slots: int, tokens: int, counts: np.ndarray, exceptions: bytes = b"") -> torch.Tensor:
    """A memory whose frames say as much as they may in as few bytes as they can."""
    squeeze = zstandard.ZstdCompressor(level=19, write_content_size=False).compress
    empty = [b""] * codec._groups
    rest = [squeeze(exceptions)] if exceptions else [b""]
    frames = [squeeze(counts.astype("<i4").view(np.uint8).reshape(-1, 4).T.tobytes())]
    frames += [squeeze(np.ones(slots, "<i2").view(np.uint8).reshape(-1, 2).T.tobytes()), *empty, *rest, *empty, *rest]
    head = struct.pack("<BBHII", 2, codec._groups, 0, tokens, slots) + bytes(2 * codec._groups)
    lengths = np.array([len(f) for f in frames], "<u4").tobytes()
    return torch.frombuffer(bytearray(b"".join((head, lengths, *frames))), dtype=torch.uint8)


def test_few_bytes_are_no_more_than_a_passage(basis: Basis) -> None:
    """Frames of equal bytes shrink to a thirty-thousandth: what they may stand for is bounded before they grow."""
    codec, runs = Transform(basis), LAYERS * HEADS
    counts = np.full(runs, 1)
    fine = forged(codec, runs, 9, counts)
    found = codec.decode({"coded": fine})
    assert found.positions.tolist() == list(range(1, 7))
    for slots, tokens in ((runs * 10_000_000, 10_000_000), (6, MOST_TOKENS + 1), (6, 2**32 - 1)):
        bomb = forged(codec, 6, tokens, counts).clone()
        bomb[8:12] = torch.frombuffer(bytearray(struct.pack("<I", slots)), dtype=torch.uint8)
        with pytest.raises(MemoryInvalid, match="does not fill its bytes"):
            codec.decode({"coded": bomb})
    for values in (bytes(8 * 400), np.arange(400, dtype="<i4").tobytes() * 2 + bytes(8)):
        with pytest.raises(MemoryInvalid, match=r"exceptions|more than its"):
            codec.decode({"coded": forged(codec, runs, 9, counts, values)})
    with pytest.raises(MemoryInvalid, match="of no passage"):
        codec.encode(dataclasses.replace(memory(1), source_len=MOST_TOKENS + 1))


def test_exceptions_that_are_genuine_grow_little(basis: Basis) -> None:
    """All numbers beyond a byte, and alike: as much as an encoder's list may shrink."""
    codec = Transform(basis)
    far = dataclasses.replace(memory(3), keys=torch.full_like(memory(3).keys, 1e4))
    assert torch.allclose(codec.decode(codec.encode(far)).keys, far.keys, rtol=0.05)


@pytest.mark.parametrize(
    "change",
    [
        {"axes": torch.zeros(2, 3, 2, 12, 12).short()}, {"steps": torch.tensor([1.0, 1e30])},
        {"axes": torch.zeros(2, 3, 2, 12, 11).half()}, {"axes": torch.zeros(3, 2, 12, 12).half()},
        {"axes": torch.zeros(2, 3, 2, 12, 12)}, {"means": torch.zeros(2, 3, 2, 11).half()},
        {"means": torch.full((2, 3, 2, 12), torch.nan).half()}, {"steps": torch.tensor([1.0, 0.0])},
        {"steps": torch.tensor([1.0])}, {"steps": torch.tensor([1.0, torch.inf])}, {"more": torch.zeros(1)},
        {"axes": torch.zeros(2, 200, 100, 1, 1).to(torch.int8), "means": torch.zeros(2, 200, 100, 1).half()},
        {"axes": torch.zeros(2, 0, 2, 12, 12).half(), "means": torch.zeros(2, 0, 2, 12).half()},
        {"axes": torch.zeros(2, 3, 2, 0, 0).half(), "means": torch.zeros(2, 3, 2, 0).half()},
    ],
)  # fmt: skip
def test_a_basis_is_looked_at(basis: Basis, change: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    tensors = {"axes": basis.axes, "means": basis.means, "steps": basis.steps} | change
    with pytest.raises(LibraryCorrupt, match="basis"):
        Basis.from_bytes(save(tensors))
    with pytest.raises(LibraryCorrupt, match="does not parse"):
        Basis.from_bytes(b"no tensors")


def test_a_stored_memory_is_one_whatever_was_looked_at(basis: Basis) -> None:
    codec, before = Transform(basis), memory(4)
    stored, other = codec.encode(before), codec.encode(memory(5))
    found = codec.decode(stored)
    assert found.head_dim == DIM and found.anchors == before.anchors and found.decoder is codec
    changed = dataclasses.replace(found, keys=found.keys * 2)
    assert torch.equal(changed.keys, found.keys * 2) and torch.equal(changed.values, found.values)
    assert changed.head_dim == DIM and codec.decode(stored).to(dtype=torch.bfloat16).keys.equal(found.keys.bfloat16())
    with pytest.raises(AttributeError, match="has no weights"):
        found.weights  # noqa: B018
    inv_freq = 0.3 ** torch.arange(DIM // 2)
    mixed = compose([changed, codec.decode(other)], inv_freq)  # one decoded, one not
    plain = compose([changed, decoded(codec.decode(other))], inv_freq)
    assert torch.equal(mixed.keys, plain.keys) and torch.equal(mixed.values, plain.values)


def decoded(found: AnchorKV) -> AnchorKV:
    """The same memory, decoded by itself."""
    return AnchorKV(found.keys, found.values, found.positions, found.counts, found.source_len, found.bias)


def company(draw: st.DrawFn, basis: Basis) -> tuple[list[AnchorKV], list[AnchorKV]]:
    """Memories of some codecs beside plain ones, some of them twice; and the same, decoded one by one."""
    codecs = [Transform(basis) for _ in range(draw(st.integers(1, 3)))]
    pool = []
    for _ in range(draw(st.integers(1, 4))):
        made = memory(draw(st.integers(0, 2**20)), tokens=draw(st.sampled_from([4, 30, 200])))
        if draw(st.booleans()):
            made.keys[draw(st.integers(0, len(made.keys) - 1))] += draw(st.sampled_from([-1e3, 2e5]))
        bias = torch.linspace(-2, 2, len(made.keys)).half().float() if draw(st.booleans()) else None
        codec, made = draw(st.sampled_from(codecs)), dataclasses.replace(made, bias=bias)
        pool.append((made, codec.decode(codec.encode(made)), decoded(codec.decode(codec.encode(made)))))
    given, alone = [], []
    for at in draw(st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=6)):
        made, stored, by_itself = pool[at]
        kind = draw(st.sampled_from(["stored", "again", "float32", "bfloat16"]))
        if kind in ("stored", "again"):
            given.append(stored if kind == "stored" else stored.to())
            alone.append(by_itself)
        else:
            given.append(made.to(dtype=getattr(torch, kind)))
            alone.append(given[-1])
    return given, alone


@given(data=st.data(), block=st.sampled_from([1, 50, 2048]), exact=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_company_is_placed_to_the_bits_of_each_decoded_by_itself(
    basis: Basis, data: st.DataObject, block: int, exact: bool
) -> None:
    given, alone = data.draw(st.composite(company)(basis))
    inv_freq = 0.3 ** torch.arange(DIM // 2)
    how: dict[str, Any] = {
        "placing": Placing(positions=data.draw(st.sampled_from(["source", "packed"]))),
        "biases": data.draw(st.sampled_from([None, [-0.5 * i for i in range(len(given))]])),
        "start": data.draw(st.sampled_from([0, 9, 4000])),
        "dtype": data.draw(st.sampled_from([None, torch.float32, torch.bfloat16])),
        "scaling": data.draw(st.sampled_from([1.0, 1.25])),
    }
    there = bases.multiplies_int8()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform, "BLOCK", block)
        patch.setattr(bases, "multiplies_int8", lambda: exact and there)
        got, want = compose(given, inv_freq, **how), compose(alone, inv_freq, **how)
    for name in ("keys", "values", "counts", "bias"):
        mine, theirs = getattr(got, name), getattr(want, name)
        assert mine is theirs is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs)), name
    assert (got.next_position, got.source_len, got.start) == (want.next_position, want.source_len, want.start)


class Overtaken(Transform):
    """Each memory that is to be decoded is decoded by somebody else first."""

    busy = False

    def decode_runs(self, memories: Sequence[StoredKV], take: Take) -> None:
        if not self.busy:
            self.busy = True
            for one in memories:
                one.keys  # noqa: B018
        super().decode_runs(memories, take)


def test_a_memory_that_another_thread_decodes_meanwhile_is_the_same(basis: Basis) -> None:
    stored = [Transform(basis).encode(memory(seed)) for seed in (4, 5)]
    inv_freq = 0.3 ** torch.arange(DIM // 2)
    alone = [decoded(Transform(basis).decode(s)) for s in stored]
    codec = Overtaken(basis)
    shared = [codec.decode(s) for s in stored]
    got, want = compose(shared, inv_freq), compose(alone, inv_freq)
    assert torch.equal(got.keys, want.keys) and torch.equal(got.values, want.values)
    assert all("keys" in vars(m) for m in shared), "nobody was first"
    for name in ("keys", "values"):
        found = Overtaken(basis).decode(stored[0])
        assert torch.equal(getattr(found, name), getattr(alone[0], name))
        # What Python does where the attribute was missing when it looked, and is there now.
        assert torch.equal(found.__getattr__(name), getattr(alone[0], name))


@pytest.mark.parametrize("trained", ["keys", "values"])
def test_what_stands_beside_stored_memories_is_trained_through_them(basis: Basis, trained: str) -> None:
    prefix, stored = memory(6), Transform(basis).decode(Transform(basis).encode(memory(7)))
    getattr(prefix, trained).requires_grad_()
    made = compose([prefix, stored], 0.3 ** torch.arange(DIM // 2))
    getattr(made, trained).sum().backward()
    grad = getattr(prefix, trained).grad
    assert grad is not None and bool((grad.abs().sum(1) > 0).all())
