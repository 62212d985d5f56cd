"""The frozen Llama, twice: a LoRA encoder that writes memory and the untouched decoder that reads it.

Both are views of the same weight tensors: the encoder is a structural copy whose linear layers carry LoRA,
so LoRA cannot leak into answering. This is the only file that knows Llama's layers, transformers' caches
and peft.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from sac_rag.compress.anchor_kv import AnchorKV, Memory, Slots
from sac_rag.compress.packed import Packed, is_steady, pack
from sac_rag.compress.rope import angles, turn
from sac_rag.errors import AdapterError, ModelError
from sac_rag.foreign import without_control
from sac_rag.records import unicode_of

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


MAX_ALPHA = 1_000_000
TILE = 8
"""CPU kernels sum the last queries of an attention otherwise when their count is no multiple of it."""

Weight = torch.Tensor | Packed

Mix = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""The attention of one layer: (layer, queries, keys, values) -> attended, shapes as in `Backbone.walk`."""


@dataclass(frozen=True)
class LoraSpec:
    """Shape of the encoder's LoRA (Hu et al., 2021)."""

    rank: int = 32
    """Inner width r."""
    alpha: float = 64.0
    """Scale; the update is alpha / rank * B A."""
    targets: tuple[str, ...] = LORA_TARGETS
    """Linear layers that carry it (the paper's code: q_proj and v_proj, at rank 128)."""
    whole: bool = False
    """Also adapt what an encoder never computes, the last layer beyond K and V: needed to read with it (Full-FT)."""

    def __post_init__(self) -> None:
        kinds = (("rank", int), ("alpha", int | float), ("targets", tuple), ("whole", bool))
        for name, kind in kinds:
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise AdapterError(f"LoRA {name} is {str(value)[:80]!r} ({type(value).__name__}), which it cannot be")
        if len(set(map(str, self.targets))) != len(self.targets):
            raise AdapterError(f"LoRA targets {self.targets} repeat one")
        unknown = [t for t in self.targets if t not in LORA_TARGETS]
        if unknown or not self.targets:
            raise AdapterError(f"LoRA targets {unknown or self.targets} are not among {', '.join(LORA_TARGETS)}")
        if not 1 <= self.rank <= 1024:
            raise AdapterError(f"LoRA rank is {self.rank}; it must lie in 1..1024")
        if not 0 < self.alpha <= MAX_ALPHA:
            raise AdapterError(f"LoRA alpha is {self.alpha}; it must be above 0, and at most {MAX_ALPHA:,}")


def least_numbers(model: Any, spec: LoraSpec) -> int:
    """How many numbers a LoRA of this shape has on a model, without the last layer, of which it may have less."""
    return sum(
        spec.rank * (module.in_features + module.out_features)
        for layer in model.model.layers[:-1]
        for name, module in layer.named_modules()
        if name.rpartition(".")[2] in spec.targets
    )


@dataclass(frozen=True)
class Reading:
    """One text for the decoder to read behind a memory (training and scoring).

    token_ids: (tokens,). scored: indices into token_ids whose **next** token carries loss.
    memory: which memory of the call stands in front of it; None for no memory.
    """

    token_ids: torch.Tensor
    scored: torch.Tensor
    memory: int | None


class Backbone:
    """A Llama with an encoder and a decoder side. Tensors live on `device` in `dtype`; LoRA stays fp32."""

    def __init__(self, model: Any, tokenizer: Any, lora: LoraSpec | None = None) -> None:
        if model.config.model_type != "llama":
            raise ModelError(f"the base model is a {model.config.model_type!r}; sac-rag needs a Llama architecture")
        self.decoder = model.eval().requires_grad_(False)
        self._blocks = [_block(layer) for layer in model.model.layers]
        self._head: Weight = model.lm_head.weight
        self.tokenizer = tokenizer
        self.config = model.config
        self.lora = lora
        self.encoder = _with_lora(self.decoder, lora) if lora else self.decoder
        self.inv_freq = self.decoder.model.rotary_emb.inv_freq.float()
        self.rope_scaling = float(self.decoder.model.rotary_emb.attention_scaling)

    @property
    def device(self) -> torch.device:
        return self.decoder.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.model.embed_tokens.weight.dtype

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @property
    def head_dim(self) -> int:
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """(layers, kv_heads, head_dim) of every AnchorKV of this model."""
        return self.config.num_hidden_layers, self.config.num_key_value_heads, self.head_dim

    @property
    def context_length(self) -> int:
        """Most positions that the model was made for."""
        return self.config.max_position_embeddings

    def pack(self) -> None:
        """Make answering faster on a CPU in bf16, for a second copy of the decoder's weights (`packed`)."""
        with torch.inference_mode():
            self._blocks = [None if b is None else b.packed() for b in self._blocks]
            self._head = _packed(self._head)

    @cached_property
    def is_steady(self) -> bool:
        """Whether a row's products have the same bits beside any number of others; measured on a CPU in bf16."""
        if self.device.type != "cpu" or self.dtype != torch.bfloat16:
            return True
        with torch.inference_mode():
            return is_steady([*(_block(self.decoder.model.layers[0]) or ()), self.decoder.lm_head.weight])

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """LoRA parameters by name (`model.layers.I.MODULE.lora_A.weight`), fp32."""
        named = self.encoder.named_parameters()
        return ((n.replace(".default", ""), p) for n, p in named if "lora_" in n)

    def tokens(self, text: str) -> list[int]:
        """Ids of untrusted text: nothing in it becomes a special token."""
        ids = self.tokenizer(unicode_of(text), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return without_control(ids, self._control, self.tokenizer.unk_token_id)

    @cached_property
    def _control(self) -> frozenset[int]:
        """Ids of special tokens, which some vocabularies hold as words of a text, too."""
        return frozenset(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}

    def template(self, text: str) -> list[int]:
        """Ids of a trusted template, special tokens included."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    # -- writing memory ----------------------------------------------------------------------------------

    def even(self, positions: torch.Tensor) -> Slots:
        """The same tokens for all heads."""
        layers, heads, _ = self.kv_shape
        return Slots.even(positions, layers, heads)

    def encode(
        self,
        chunks: Sequence[torch.Tensor],
        picks: Sequence[Slots],
        *,
        anchor_embedding: torch.Tensor | None = None,
        causal: bool = False,
        future_bias: float | None = None,
        use_lora: bool = True,
    ) -> list[AnchorKV]:
        """Pre-RoPE keys and values of the picked tokens of each chunk (SAC, section 3.2 and eq. 4).

        chunks: token ids, each (L_i,); picks: which tokens of it each head keeps. Chunks are packed without
        padding and never see each other. anchor_embedding: (width,), added to the embeddings of the anchors, the
        tokens that any head keeps. causal=False is the paper's bidirectional mask; future_bias is added to its scores
        of later tokens, from 0 (as None) down to -inf (causal). Nothing is computed behind the last layer that keeps
        something, and there K and V of its picks only.
        Differentiable unless called under inference_mode.
        """
        body = (self.encoder if use_lora else self.decoder).model
        device = self.device
        lengths = [c.numel() for c in chunks]
        starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        h = body.embed_tokens(torch.cat(list(chunks)).to(device))
        if anchor_embedding is not None:
            marked = torch.cat([p.anchors + s for p, s in zip(picks, starts, strict=False)]).to(device)
            h = h.index_add(0, marked, anchor_embedding.to(h.dtype).expand(marked.numel(), -1))
        cos, sin = self._tables(torch.cat([torch.arange(n) for n in lengths]))
        heads, groups, dim = self.config.num_attention_heads, self.config.num_key_value_heads, self.head_dim
        kept = _kept(picks, starts, groups)
        last = max(i for i, (_, sizes) in enumerate(kept) if any(sizes))
        made: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        for index, layer in enumerate(body.layers):
            x = _norm(layer.input_layernorm, h)
            attn = layer.self_attn
            at, sizes = kept[index][0].to(device), kept[index][1]
            if index == last:
                tokens, at = _narrowed(at, groups)
                x = x[tokens]
            k = _linear(attn.k_proj, x).view(-1, groups, dim)
            v = _linear(attn.v_proj, x).view(-1, groups, dim)
            runs = (t.flatten(0, 1)[at].split(sizes) for t in (k, v))
            made.append(list(zip(*runs, strict=True)))
            if index == last:
                break
            q = turn(_linear(attn.q_proj, x).view(-1, heads, dim), cos, sin)
            k = turn(k, cos, sin)
            parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
            out = [_attend(*qkv, causal=causal, future_bias=future_bias) for qkv in parts]
            h = _finish(layer, h, torch.cat(out))
        return [
            AnchorKV(
                torch.cat([layer[i][0] for layer in made]),
                torch.cat([layer[i][1] for layer in made]),
                p.positions.to(device),
                p.counts,
                n,
            )
            for i, (p, n) in enumerate(zip(picks, lengths, strict=True))
        ]

    # -- reading memory ----------------------------------------------------------------------------------

    def read(
        self,
        memories: Sequence[Memory],
        readings: Sequence[Reading],
        *,
        use_lora: bool = False,
        without: Sequence[Memory | None] = (),
        shares: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of shape (scored tokens, vocabulary), readings in order, each behind its own memory.

        Readings are packed without padding; the memory's positions are honoured and each reading continues
        at its memory's `next_position`. Differentiable through the memories. use_lora=True reads with the
        adapted weights (Full-FT), never used for compressed memory.
        shares: (memories, layers, kv_heads) in 0..1, what of each head's attention goes to its memory, the rest to the
        one in `without`: how much a head needs the memory is learned so (DuoAttention, arXiv 2410.10819, section 2.2).
        """
        device = self.device
        lengths = [r.token_ids.numel() for r in readings]
        starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        base = [0 if r.memory is None else memories[r.memory].next_position for r in readings]
        ids = torch.cat([r.token_ids for r in readings])
        positions = torch.cat([torch.arange(n) + o for n, o in zip(lengths, base, strict=True)])
        scored = torch.cat([r.scored + a for r, a in zip(readings, starts, strict=False)]).to(device)
        fronts, others = ([_fronts(m) if m else None for m in ms] for ms in (memories, without))

        def mix(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = []
            for r, *qkv in zip(readings, q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
                seen = _attend(*qkv, causal=True, front=_layer(fronts, r.memory, index))
                if shares is not None and r.memory is not None:
                    share = shares[r.memory, index].repeat_interleave(seen.shape[1] // k.shape[1]).to(seen.dtype)
                    other = _attend(*qkv, causal=True, front=_layer(others, r.memory, index))
                    seen = share * seen + (1 - share) * other
                out.append(seen)
            return torch.cat(out)

        return self.walk(ids, positions, mix, scored=scored, use_lora=use_lora)

    def walk(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mix: Mix,
        *,
        scored: torch.Tensor | None = None,
        use_lora: bool = False,
    ) -> torch.Tensor:
        """One pass of packed tokens through the decoder; logits (scored or all tokens, vocabulary).

        ids, positions: (tokens,). `mix` is the attention: called for each layer with rotated queries (tokens, heads,
        head_dim), rotated keys and plain values (tokens, kv_heads, head_dim), it returns (tokens, heads * head_dim).
        """
        model = self.encoder if use_lora else self.decoder
        body, device = model.model, self.device
        heads, groups, dim = self.config.num_attention_heads, self.config.num_key_value_heads, self.head_dim
        h = body.embed_tokens(ids.to(device))
        cos, sin = self._tables(positions)
        for index, layer in enumerate(body.layers):
            x = _norm(layer.input_layernorm, h)
            attn = layer.self_attn
            block = None if use_lora else self._blocks[index]
            if block is None:
                parts = [_linear(p, x) for p in (attn.q_proj, attn.k_proj, attn.v_proj)]
            else:
                parts = _times(x, block.qkv).split((heads * dim, groups * dim, groups * dim), dim=-1)
            q, k, v = (p.view(-1, n, dim) for p, n in zip(parts, (heads, groups, groups), strict=True))
            out = mix(index, turn(q, cos, sin), turn(k, cos, sin), v)
            if index == len(body.layers) - 1 and scored is not None:
                h, out = h[scored], out[scored]
            h = _finish(layer, h, out, block)
        return _times(_norm(body.norm, h), model.lm_head.weight if use_lora else self._head)

    def plain_logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits (tokens, vocabulary) of the untouched model as transformers computes them: the reference."""
        return self.decoder(input_ids=token_ids[None].to(self.device)).logits[0]

    def rotate_like_model(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotate keys (heads, tokens, head_dim) with the model's own rotary module: the reference for `rope`."""
        cos, sin = self.decoder.model.rotary_emb(keys, positions[None].to(keys.device))
        return turn(keys, cos[0], sin[0])

    def _tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, (tokens, 1, head_dim), in the model's dtype."""
        a = angles(positions.to(self.device), self.inv_freq.to(self.device))[:, None]
        return (a.cos() * self.rope_scaling).to(self.dtype), (a.sin() * self.rope_scaling).to(self.dtype)


class _Front(NamedTuple):
    """What one layer attends in front of a text: k and v (n, kv_heads, d), the runs of its heads from the left,
    (n, kv_heads) where a shorter run has no slot (None: nowhere), and (kv_heads, n) what is added to the scores
    (None: nothing)."""

    keys: torch.Tensor
    values: torch.Tensor
    hidden: torch.Tensor | None
    bias: torch.Tensor | None = None


def _fronts(memory: Memory) -> list[_Front | None]:
    """A memory layer by layer; None where a layer keeps nothing."""
    fronts: list[_Front | None] = []
    biases = memory.layer_biases()
    for layer, (runs, counts) in enumerate(zip(memory.layer_runs(), memory.counts, strict=True)):
        most = int(counts.max())
        if not most:
            fronts.append(None)
            continue
        keys, values = (pad_sequence([run[i] for run in runs]) for i in (0, 1))
        hidden = None if bool((counts == most).all()) else (torch.arange(most)[:, None] >= counts).to(keys.device)
        bias = None if biases is None else pad_sequence(biases[layer], batch_first=True).to(keys.dtype)
        fronts.append(_Front(keys, values, hidden, bias))
    return fronts


def _layer(fronts: Sequence[list[_Front | None] | None], memory: int | None, layer: int) -> _Front | None:
    found = None if memory is None else fronts[memory]
    return found[layer] if found else None


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    front: _Front | None = None,
    future_bias: float | None = None,
) -> torch.Tensor:
    """Attention of one packed sequence: q (n, heads, d), k and v (n, kv_heads, d); `front` is attended by all.

    future_bias: added to the scores of later tokens, where these are seen.
    """
    n, mask, bias = q.shape[0], None, None
    if front is not None:
        k, v = torch.cat((front.keys, k)), torch.cat((front.values, v))
    m, heads, groups, dim = k.shape[0], q.shape[1], k.shape[1], q.shape[2]
    if n > 1 and (causal or front is not None):
        mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
    elif future_bias:
        bias = torch.full((n, m), future_bias, dtype=q.dtype, device=q.device).triu(1)
    if front is not None and front.hidden is not None:
        seen = F.pad(~front.hidden.T, (0, n), value=True)[:, None]
        mask = seen.expand(-1, n, -1) if mask is None else seen & mask
    prior = None if front is None or front.bias is None else F.pad(front.bias, (0, n))[:, None]
    if q.requires_grad and q.device.type == "cpu":
        # The fused CPU kernel's backward is four times slower than two small matmuls at these lengths.
        q = q.view(n, groups, heads // groups, dim).permute(1, 2, 0, 3).reshape(groups, -1, dim)
        scores = torch.bmm(q, k.permute(1, 2, 0)) * dim**-0.5
        if mask is not None:
            mask = ~(mask if mask.ndim == 2 else mask[:, None])
            scores = scores.view(groups, -1, n, m).masked_fill(mask, float("-inf")).view(groups, -1, m)
        if bias is not None:
            scores = (scores.view(groups, -1, n, m) + bias).view(groups, -1, m)
        if prior is not None:
            scores = scores + prior
        out = torch.bmm(scores.softmax(-1), v.transpose(0, 1))
        return out.view(groups, heads // groups, n, dim).permute(2, 0, 1, 3).reshape(n, -1)
    if mask is not None:
        mask = spread(mask, heads // groups, q.dtype)
    elif bias is not None:
        mask = bias.repeat(heads // groups, 1)
    if prior is not None:
        rows = heads // groups * n
        mask = prior.expand(-1, rows + -rows % TILE, -1) if mask is None else mask + prior
    return attend(q, k.transpose(0, 1), v.transpose(0, 1), mask=mask)


def spread(mask: torch.Tensor, repeat: int, dtype: torch.dtype) -> torch.Tensor:
    """A mask (..., n, m), True where a query sees a key, as `attend` adds it: 0 or -inf, (..., repeat * n, m), and
    rows that hide nothing up to a multiple of `TILE`."""
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    rows = repeat * mask.shape[-2]
    return F.pad(torch.cat([added] * repeat, dim=-2), (0, 0, 0, -rows % TILE))


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: torch.Tensor | None = None, causal: bool = False
) -> torch.Tensor:
    """Fused attention of one sequence: q (n, heads, d), k and v (kv_heads, m, d) -> (n, heads * d).

    mask: of `spread`, for all heads or (kv_heads, rows, m); without it a query sees all keys, or with `causal` (n <= m)
    those up to its own place.
    """
    n, heads, dim = q.shape
    groups, repeat = k.shape[0], heads // k.shape[0]
    if causal:
        q = F.pad(q, (0, 0, 0, 0, 0, k.shape[1] - n))
        k, v = k.repeat_interleave(repeat, dim=0), v.repeat_interleave(repeat, dim=0)
        out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], k[None], v[None], is_causal=True)
        return out[0, :, :n].transpose(0, 1).reshape(n, -1)
    # The query heads that share a key head become more of its queries: a long memory is not copied.
    q = q.view(n, groups, repeat, dim).permute(1, 2, 0, 3).reshape(groups, repeat * n, dim)
    if mask is not None:
        q = F.pad(q, (0, 0, 0, mask.shape[-2] - repeat * n))
        mask = mask if mask.ndim == 2 else mask[None]
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0, :, : repeat * n]
    return out.view(groups, repeat, n, dim).permute(2, 0, 1, 3).reshape(n, -1)


def _finish(layer: Any, h: torch.Tensor, attended: torch.Tensor, block: _Block | None = None) -> torch.Tensor:
    """Output projection, residual and MLP of one layer, by its `block` or by its modules."""
    attn, mlp = layer.self_attn, layer.mlp
    h = h + (_linear(attn.o_proj, attended) if block is None else _times(attended, block.out))
    x = _norm(layer.post_attention_layernorm, h)
    if block is None:
        return h + _linear(mlp.down_proj, F.silu(_linear(mlp.gate_proj, x)) * _linear(mlp.up_proj, x))
    gate, up = _times(x, block.gate_up).chunk(2, dim=-1)
    return h + _times(F.silu(gate) * up, block.down)


def _kept(picks: Sequence[Slots], starts: Sequence[int], groups: int) -> list[tuple[torch.Tensor, list[int]]]:
    """Per layer what is kept of packed tokens, token * groups + head, chunk by chunk, and how much of each chunk."""
    at, sizes = [], []
    for pick, start in zip(picks, starts, strict=False):
        layers = pick.counts.sum(1).tolist()
        at.append(((pick.positions.cpu() + start) * groups + pick.runs() % groups).split(layers))
        sizes.append(layers)
    return [(torch.cat(a), list(n)) for a, n in zip(zip(*at, strict=True), zip(*sizes, strict=True), strict=True)]


def _narrowed(at: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(the tokens among token * groups + head, the same indices among these tokens alone)."""
    tokens, rank = (at // groups).unique(return_inverse=True)
    return tokens, rank * groups + at % groups


class _Block(NamedTuple):
    """Weights of one decoder layer as `Backbone.walk` multiplies by them."""

    qkv: Weight
    out: Weight
    gate_up: Weight
    down: Weight

    def packed(self) -> _Block:
        return _Block(*(_packed(w) for w in self))


def _packed(weight: Weight) -> Weight:
    return weight if isinstance(weight, Packed) else pack(weight)


def _block(layer: Any) -> _Block | None:
    """None where a linear layer has a bias."""
    a, m = layer.self_attn, layer.mlp
    if any(t.bias is not None for t in (a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj)):
        return None
    qkv, gate_up = _joined(a.q_proj, a.k_proj, a.v_proj), _joined(m.gate_proj, m.up_proj)
    return _Block(qkv, a.o_proj.weight, gate_up, m.down_proj.weight)


def _joined(*layers: Any) -> torch.Tensor:
    """One weight for linear layers of the same input: a question of few tokens pays for calls, not for sums.

    The layers' own weights become views of it, so nothing is held twice, by a second Backbone of the model neither.
    """
    weights = [layer.weight.data for layer in layers]
    if _adjacent(weights):
        rows, width = sum(w.shape[0] for w in weights), weights[0].shape[1]
        return weights[0].as_strided((rows, width), (width, 1))
    whole = torch.cat(weights)
    parts = whole.split([w.shape[0] for w in weights])
    for layer, part in zip(layers, parts, strict=True):
        layer.weight.data = part
    return whole


def _adjacent(weights: Sequence[torch.Tensor]) -> bool:
    """Whether they lie end to end in one storage already."""
    ends = [w.data_ptr() + w.nbytes for w in weights]
    one = len({w.untyped_storage().data_ptr() for w in weights}) == 1 and all(w.is_contiguous() for w in weights)
    return one and all(w.data_ptr() == end for w, end in zip(weights[1:], ends, strict=False))


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _times(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A linear map of rows. One row alone is computed as two: CPU kernels sum it in another order, and an answer
    must not depend on how many are under way."""
    if x.shape[0] == 1:
        return _times(x.expand(2, -1).contiguous(), weight, bias)[:1]
    return weight.times(x) if isinstance(weight, Packed) else F.linear(x, weight, bias)


def _linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    """A linear layer, with its LoRA if it carries one; the low-rank path runs in the activations' dtype."""
    if not hasattr(module, "lora_A"):
        return _times(x, module.weight, module.bias)
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    low = F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))
    return torch.add(module.base_layer(x), low, alpha=module.scaling["default"])


def _with_lora(model: Any, spec: LoraSpec) -> Any:
    """A structural copy of `model` that shares every weight tensor and carries a fresh LoRA (B = 0)."""
    from peft import LoraConfig, inject_adapter_in_model

    shared: dict[int, Any] = {id(t): t for t in _tensors(model)}
    twin = copy.deepcopy(model, shared)
    last = model.config.num_hidden_layers - 1
    # The encoder stops at the last layer's K and V: LoRA on what is never computed would be dead weight.
    dead = () if spec.whole else tuple(t for t in spec.targets if t not in ("k_proj", "v_proj"))
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=0.0,
        target_modules=list(spec.targets),
        exclude_modules=rf".*\.layers\.{last}\..*({'|'.join(dead)})" if dead else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a run repeats, whatever chance was used before it
        twin = inject_adapter_in_model(config, twin)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return twin


def _tensors(model: nn.Module) -> Iterable[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
