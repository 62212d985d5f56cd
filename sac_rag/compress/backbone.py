"""The frozen decoder, twice: a LoRA encoder that writes memory and the untouched decoder that reads it.

Both are views of the same weight tensors: the encoder is a structural copy whose linear layers carry LoRA,
so LoRA cannot leak into answering. This is the only file that knows a decoder's layers (Llama's, and those of the
other `families`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV, Memory, Slots
from sac_rag.compress.attention import attend_packed, front_at, fronts_of
from sac_rag.compress.lora import Held, adapt, adapt_by_peft, held_of, layers_of
from sac_rag.compress.norm import rms_norm
from sac_rag.compress.packed import Packed, is_batch_invariant, pack
from sac_rag.compress.rope import angles, turn
from sac_rag.errors import AdapterError, ModelError
from sac_rag.families import family_of
from sac_rag.foreign import without_control
from sac_rag.records import unicode_of

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

TOGETHER = 256
"""Tokens of the readings behind one memory that share an attention where gradients are wanted of a CPU."""

MAX_ALPHA = 1_000_000
Weight = torch.Tensor | Packed

Mix = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""The attention of one layer: (layer, queries, keys, values) -> attended, shapes as in `Backbone.walk`."""

Project = Callable[[int, str, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""What a method makes of a projection: (layer, "q_proj", "k_proj" or "v_proj", its normed inputs (rows, width), its
outputs (rows, outputs), the places (rows,) of these tokens in the packed batch) -> the outputs to go on with."""


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
    start: str = "inputs"
    """A starts uniform within 1 / sqrt(inputs of the layer), as peft has it, or within 1 / sqrt(rank), as the paper's
    code: "inputs" or "rank"."""

    def __post_init__(self) -> None:
        kinds = (("rank", int), ("alpha", int | float), ("targets", tuple), ("whole", bool), ("start", str))
        for name, kind in kinds:
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise AdapterError(f"LoRA {name} is {str(value)[:80]!r} ({type(value).__name__}), which it cannot be")
        if len(set(map(str, self.targets))) != len(self.targets):
            raise AdapterError(f"LoRA targets {self.targets} repeat one")
        unknown = [t for t in self.targets if t not in LORA_TARGETS]
        if unknown or not self.targets:
            raise AdapterError(f"LoRA targets {unknown or self.targets} are not among {', '.join(LORA_TARGETS)}")
        if self.start not in ("inputs", "rank"):
            raise AdapterError(f"LoRA start is {self.start!r}; use inputs or rank")
        if not 1 <= self.rank <= 1024:
            raise AdapterError(f"LoRA rank is {self.rank}; it must lie in 1..1024")
        if not 0 < self.alpha <= MAX_ALPHA:
            raise AdapterError(f"LoRA alpha is {self.alpha}; it must be above 0, and at most {MAX_ALPHA:,}")

    def to_mapping(self) -> dict[str, Any]:
        """JSON values; `start` where it is not the default, for what was stored before there was a choice."""
        found = {**asdict(self), "targets": list(self.targets)}
        return found if self.start != "inputs" else {n: v for n, v in found.items() if n != "start"}


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

    token_ids: (tokens,), or embeddings (tokens, width). scored: indices of tokens whose **next** token carries loss.
    memory: which memory of the call stands in front of it; None for no memory.
    """

    token_ids: torch.Tensor
    scored: torch.Tensor
    memory: int | None


class How(TypedDict, total=False):
    """How a batch of sequences is encoded, where it is not by its tokens alone. Sequences are one entry a chunk."""

    appended: Sequence[torch.Tensor]
    """Embeddings (n, width) of extra tokens behind each chunk."""
    positions: Sequence[torch.Tensor]
    """Rotary positions (tokens,) of each chunk and what is appended to it; without them 0, 1, 2, ..."""
    fronts: Sequence[Memory | None]
    """Memory that all tokens of a chunk attend, such as that of the chunks before it."""
    masks: Sequence[torch.Tensor]
    """(tokens, tokens), True where a token (row) sees another, in place of `causal`."""
    causal: bool
    """No token sees a later one; else every token sees all of its chunk (the paper's bidirectional mask)."""
    future_bias: float | None
    """Added to the scores of later tokens, from 0 (as None) down to -inf (causal)."""
    project: Project | None
    """Projections of a method's own for some of the tokens."""
    use_lora: bool
    """Whether the LoRA encoder computes (the default), or the decoder."""


class Backbone:
    """A model with an encoder and a decoder side. Tensors live on `device` in `dtype`; LoRA stays fp32.

    Raises ModelError for a model of no family that is known, or with layers that this release of transformers builds
    otherwise.
    """

    def __init__(
        self, model: Any, tokenizer: Any, lora: LoraSpec | None = None, *, trains: bool = False, starts: bool = True
    ) -> None:
        """trains: LoRA is peft's, as training is built on it; else ours, the same without the time that peft takes.
        starts: else ours, and what methods learn, hold no values until an adapter's are loaded, and the encoder is
        made at its first use: answering needs none."""
        family = family_of(model.config.to_dict(), "the base model")
        known = {"q_proj", "k_proj", "v_proj", "o_proj", *family.norms}
        if strange := {n for n, _ in model.model.layers[0].self_attn.named_children()} ^ known:
            raise ModelError(
                f"attention of this {family.title} model is not as expected ({', '.join(sorted(strange))} in or out): "
                "this release of transformers builds it otherwise; install an earlier one, or report it"
            )
        self.decoder = model.eval().requires_grad_(False)
        self._blocks = [_block(layer) for layer in model.model.layers]
        self._biases = [_biases(layer) for layer in model.model.layers]
        self._head: Weight = model.lm_head.weight
        self.tokenizer = tokenizer
        self.config = model.config
        self.lora, self.starts = lora, starts
        self._held: dict[str, Held] = {}
        if lora and (trains or starts):
            self.encoder = _with_lora(self.decoder, lora, trains)
        elif lora:
            self._held = held_of(self.decoder, _adapted(self.decoder, lora), lora.rank)
        self.inv_freq = self.decoder.model.rotary_emb.inv_freq.float()
        self.rope_scaling = float(self.decoder.model.rotary_emb.attention_scaling)

    @cached_property
    def encoder(self) -> Any:
        """The decoder with LoRA; itself where there is none."""
        if self.lora is None:
            return self.decoder
        with torch.inference_mode(False):  # whoever asks first, it is the same
            return _with_lora(self.decoder, self.lora, held=self._held)

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
    def numbers(self) -> int:
        """Weights in the layers of the decoder."""
        return sum(p.numel() for p in self.decoder.model.layers.parameters())

    @property
    def context_length(self) -> int:
        """Most positions that the model was made for."""
        return self.config.max_position_embeddings

    def pack(self) -> None:
        """Make answering faster on a CPU in bf16, for a second copy of the decoder's weights (`packed`)."""
        with torch.inference_mode():
            self._blocks = [w.packed(b) for w, b in zip(self._blocks, self._biases, strict=True)]
            self._head = _packed(self._head)

    @torch.no_grad()
    def folded(self) -> Backbone:
        """A backbone whose decoder is this one with its LoRA added to the weights (in fp32, rounded once): reading
        with the LoRA then costs what reading with the base does. It holds a second copy of the layers that change."""
        shared = {id(t): t for t in _tensors(self.decoder)}
        twin = copy.deepcopy(self.decoder, shared)
        theirs = dict(self.encoder.named_modules())
        for name, module in twin.named_modules():
            lora = theirs.get(name)
            if lora is None or not hasattr(lora, "lora_A"):
                continue
            a, b = lora.lora_A["default"].weight.float(), lora.lora_B["default"].weight.float()
            weight = module.weight.float() + lora.scaling["default"] * (b @ a)
            module.weight = nn.Parameter(weight.to(module.weight.dtype), requires_grad=False)
        return Backbone(twin, self.tokenizer)

    @cached_property
    def is_batch_invariant(self) -> bool:
        """Whether a row's products have the same bits beside any number of others; measured on a CPU in bf16."""
        if self.device.type != "cpu" or self.dtype != torch.bfloat16:
            return True
        with torch.inference_mode():
            weights = (*_block(self.decoder.model.layers[0]), self.decoder.lm_head.weight)
            return is_batch_invariant(w for w in weights if not isinstance(w, Packed))

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """LoRA parameters by name (`model.layers.I.MODULE.lora_A.weight`), fp32."""
        if self._held:
            kinds = ("lora_A", "lora_B")
            return (
                (f"{name}.{kind}.weight", parameter)
                for name, held in self._held.items()
                for kind, parameter in zip(kinds, held, strict=True)
            )
        named = self.encoder.named_parameters()
        return ((n.replace(".default", ""), p) for n, p in named if "lora_" in n)

    def projections(self) -> Iterator[tuple[str, torch.Size]]:
        """Shapes of what makes an encoder's queries, keys and values, with names such as `0.q_proj.weight`: all but the
        queries of the last layer."""
        layers = self.decoder.model.layers
        for index, layer in enumerate(layers):
            for name in ("q_proj", "k_proj", "v_proj")[index == len(layers) - 1 :]:
                module = getattr(layer.self_attn, name)
                yield from ((f"{index}.{name}.{kind}", t.shape) for kind, t in module.named_parameters())

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

    def embed(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Embeddings (tokens, width), on the device, of token ids (n,) and embeddings (n, width), end to end."""
        table = self.decoder.model.embed_tokens
        if all(given.ndim == 1 for given in inputs):
            return table(torch.cat(inputs).to(self.device))
        parts = [given.to(self.device) for given in inputs]
        return torch.cat([table(part) if part.ndim == 1 else part.to(self.dtype) for part in parts])

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
        **how: Unpack[How],
    ) -> list[AnchorKV]:
        """Pre-RoPE keys and values of the picked tokens of each chunk (SAC, section 3.2 and eq. 4).

        chunks: token ids, each (L_i,), or embeddings (L_i, width); picks: which tokens of it, appended ones counted on,
        each head keeps. Chunks are packed without padding and never see each other. anchor_embedding: (width,), added
        to the embeddings of the anchors, the tokens that any head keeps. A memory has the rotary positions of what it
        keeps, and L_i as its source length. Nothing is computed behind the last layer that keeps something, and there
        K and V of its picks only. Differentiable unless called under inference_mode.
        """
        made = self._encoded(chunks, picks, (), anchor_embedding, **how)[0]
        at = how.get("positions")
        return [
            AnchorKV(
                torch.cat([layer[i][0] for layer in made]),
                torch.cat([layer[i][1] for layer in made]),
                (at[i][p.positions] if at else p.positions).to(self.device),
                p.counts,
                c.shape[0],
            )
            for i, (p, c) in enumerate(zip(picks, chunks, strict=True))
        ]

    def hidden(
        self, chunks: Sequence[torch.Tensor], tokens: Sequence[torch.Tensor], **how: Unpack[How]
    ) -> list[torch.Tensor]:
        """States (tokens, width) behind the last layer and norm, of some tokens of each chunk.

        chunks: as in `encode`; tokens: (n,) indices into each, appended ones counted on. With LoRA, the last layer is
        adapted where `LoraSpec.whole` is set. Differentiable likewise.
        """
        states = self._encoded(chunks, (), tokens, None, **how)[1]
        return list(states.split([t.numel() for t in tokens]))

    def _encoded(
        self,
        chunks: Sequence[torch.Tensor],
        picks: Sequence[Slots],
        tokens: Sequence[torch.Tensor],
        anchor_embedding: torch.Tensor | None,
        *,
        appended: Sequence[torch.Tensor] = (),
        positions: Sequence[torch.Tensor] = (),
        fronts: Sequence[Memory | None] = (),
        masks: Sequence[torch.Tensor] = (),
        causal: bool = False,
        future_bias: float | None = None,
        project: Project | None = None,
        use_lora: bool = True,
    ) -> tuple[list[list[tuple[torch.Tensor, torch.Tensor]]], torch.Tensor]:
        """(keys and values of `picks` by layer and chunk; states of `tokens`); one of the two is empty."""
        body, device = (self.encoder if use_lora else self.decoder).model, self.device
        parts = [(c, *appended[i : i + 1]) for i, c in enumerate(chunks)]
        lengths = [sum(part.shape[0] for part in parts_of) for parts_of in parts]
        starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        h = self.embed(*(part for parts_of in parts for part in parts_of))
        if anchor_embedding is not None:
            marked = torch.cat([p.anchors + s for p, s in zip(picks, starts, strict=False)]).to(device)
            h = h.index_add(0, marked, anchor_embedding.to(h.dtype).expand(marked.numel(), -1))
        cos, sin = self._tables(torch.cat(list(positions) or [torch.arange(n) for n in lengths]))
        ahead = [fronts_of(m) if m else None for m in fronts]
        heads, groups = self.config.num_attention_heads, self.config.num_key_value_heads
        kept = _kept(picks, starts, groups) if picks else []
        last = max((i for i, (_, sizes) in enumerate(kept) if any(sizes)), default=len(body.layers) - 1)
        every = torch.arange(starts[-1], device=device)
        made: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        for index, layer in enumerate(body.layers):
            x, rows = _norm(layer.input_layernorm, h), every
            attn = layer.self_attn
            if picks:
                at, sizes = kept[index][0].to(device), kept[index][1]
                if index == last:
                    rows, at = _narrowed(at, groups)
                    x = x[rows]
            k = self._projected(index, attn, "k", x, rows, groups, project)
            v = self._projected(index, attn, "v", x, rows, groups, project)
            if picks:
                runs = (t.flatten(0, 1)[at].split(sizes) for t in (k, v))
                made.append(list(zip(*runs, strict=True)))
                if index == last:
                    break
            q = turn(self._projected(index, attn, "q", x, rows, heads, project), cos, sin)
            k = turn(k, cos, sin)
            out = [
                attend_packed(
                    *qkv,
                    causal=causal,
                    front=front_at(ahead, i if ahead else None, index),
                    future_bias=future_bias,
                    own=masks[i] if masks else None,
                )
                for i, qkv in enumerate(zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True))
            ]
            attended = torch.cat(out)
            if index == last:
                scored = torch.cat([t + s for t, s in zip(tokens, starts, strict=False)]).to(device)
                h, attended = h[scored], attended[scored]
            h = _finish(layer, h, attended)
        return made, h[:0] if picks else _norm(body.norm, h)

    def _projected(
        self, index: int, attn: Any, kind: str, x: torch.Tensor, rows: torch.Tensor, heads: int, project: Project | None
    ) -> torch.Tensor:
        """Queries, keys or values (rows, heads, head_dim) before RoPE, of a normed x (rows, width)."""
        name = f"{kind}_proj"
        out = _linear(getattr(attn, name), x)
        out = out if project is None else project(index, name, x, out, rows)
        return _head_norm(attn, kind, out.view(-1, heads, self.head_dim))

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
        lengths = [r.token_ids.shape[0] for r in readings]
        starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        base = [0 if r.memory is None else memories[r.memory].next_position for r in readings]
        texts = [r.token_ids for r in readings]
        inputs = torch.cat(texts) if all(t.ndim == 1 for t in texts) else self.embed(*texts)
        positions = torch.cat([torch.arange(n) + o for n, o in zip(lengths, base, strict=True)])
        scored = torch.cat([r.scored + a for r, a in zip(readings, starts, strict=False)]).to(device)
        fronts, others = ([fronts_of(m) if m else None for m in ms] for ms in (memories, without))

        groups = _together(readings) if torch.is_grad_enabled() and device.type == "cpu" else [[r] for r in readings]
        sizes = [sum(r.token_ids.shape[0] for r in group) for group in groups]
        own = [_apart(group).to(device) if len(group) > 1 else None for group in groups]

        def mix(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = []
            packed = zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
            for group, mask, qkv in zip(groups, own, packed, strict=True):
                memory = group[0].memory
                seen = attend_packed(*qkv, causal=True, own=mask, front=front_at(fronts, memory, index))
                if shares is not None and memory is not None:
                    share = shares[memory, index].repeat_interleave(seen.shape[1] // qkv[1].shape[1]).to(seen.dtype)
                    other = attend_packed(*qkv, causal=True, own=mask, front=front_at(others, memory, index))
                    seen = share * seen + (1 - share) * other
                out.append(seen)
            return torch.cat(out)

        return self.walk(inputs, positions, mix, scored=scored, use_lora=use_lora)

    def walk(
        self,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        mix: Mix,
        *,
        scored: torch.Tensor | None = None,
        use_lora: bool = False,
    ) -> torch.Tensor:
        """One pass of packed tokens through the decoder; logits (scored or all tokens, vocabulary).

        inputs: token ids (tokens,) or embeddings (tokens, width); positions: (tokens,). `mix` is the attention: called
        for each layer with rotated queries (tokens, heads, head_dim), rotated keys and plain values (tokens, kv_heads,
        head_dim), it returns (tokens, heads * head_dim).
        """
        model = self.encoder if use_lora else self.decoder
        body = model.model
        heads, groups, dim = self.config.num_attention_heads, self.config.num_key_value_heads, self.head_dim
        h = self.embed(inputs)
        alone = h.shape[0] == 1
        if alone:  # as `_times` has it, once for all layers
            h = h.expand(2, -1).contiguous()
        cos, sin = self._tables(positions)
        for index, layer in enumerate(body.layers):
            x = _norm(layer.input_layernorm, h)
            attn = layer.self_attn
            block, bias = (None, None) if use_lora else (self._blocks[index], self._biases[index])
            if block is None or bias is None:
                parts = torch.cat([_linear(p, x) for p in (attn.q_proj, attn.k_proj, attn.v_proj)], dim=-1)
            else:
                parts = _times(x, block.qkv, bias.qkv)
            parts = (parts[:1] if alone else parts).view(-1, heads + 2 * groups, dim)
            qk, v = parts.split((heads + groups, groups), dim=1)
            if hasattr(attn, "q_norm"):
                q, k = qk.split((heads, groups), dim=1)
                qk = torch.cat((_head_norm(attn, "q", q), _head_norm(attn, "k", k)), dim=1)
            q, k = turn(qk, cos, sin).split((heads, groups), dim=1)
            out = mix(index, q, k, v)
            if alone:
                out = out.expand(2, -1)
            elif index == len(body.layers) - 1 and scored is not None:
                h, out = h[scored], out[scored]
            h = _finish(layer, h, out, block, bias)
        logits = _times(_norm(body.norm, h), model.lm_head.weight if use_lora else self._head)
        if alone:
            logits = logits[:1] if scored is None else logits[:1][scored]
        return logits

    def plain_logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits (tokens, vocabulary) of the untouched model as transformers computes them: the reference."""
        return self._reference(input_ids=token_ids[None].to(self.device)).logits[0]

    def rotate_like_model(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotate keys (heads, tokens, head_dim) with the model's own rotary module: the reference for `rope`."""
        cos, sin = self._reference.model.rotary_emb(keys, positions[None].to(keys.device))
        return turn(keys, cos[0], sin[0])

    @property
    def _reference(self) -> Any:
        """transformers' own model of the decoder's weights."""
        return getattr(self.decoder, "reference", self.decoder)

    def _tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, (tokens, 1, head_dim), in the model's dtype."""
        a = angles(positions.to(self.device), self.inv_freq.to(self.device))[:, None]
        return (a.cos() * self.rope_scaling).to(self.dtype), (a.sin() * self.rope_scaling).to(self.dtype)


def _finish(
    layer: Any, h: torch.Tensor, attended: torch.Tensor, block: _Block | None = None, bias: _Biases | None = None
) -> torch.Tensor:
    """Output projection, residual and MLP of one layer, by its `block` and `bias` or by its modules."""
    attn, mlp = layer.self_attn, layer.mlp
    if block is None or bias is None:
        h = h + _linear(attn.o_proj, attended)
        x = _norm(layer.post_attention_layernorm, h)
        return h + _linear(mlp.down_proj, F.silu(_linear(mlp.gate_proj, x)) * _linear(mlp.up_proj, x))
    h = h + _times(attended, block.out, bias.out)
    x = _norm(layer.post_attention_layernorm, h)
    gate, up = _times(x, block.gate_up, bias.gate_up).chunk(2, dim=-1)
    return h + _times(F.silu(gate) * up, block.down, bias.down)


def _together(readings: Sequence[Reading]) -> list[list[Reading]]:
    """Runs of readings behind one memory, of `TOGETHER` tokens at the most, that one attention serves."""
    groups: list[list[Reading]] = []
    size = 0
    for r in readings:
        size += r.token_ids.shape[0]
        if groups and groups[-1][0].memory == r.memory and size <= TOGETHER:
            groups[-1].append(r)
        else:
            groups.append([r])
            size = r.token_ids.shape[0]
    return groups


def _apart(readings: Sequence[Reading]) -> torch.Tensor:
    """(tokens, tokens), True where a token of one of the readings sees one of its own."""
    return torch.block_diag(*(torch.ones(n, n).tril() for n in (r.token_ids.shape[0] for r in readings))).bool()


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

    def packed(self, biases: _Biases) -> _Block:
        return _Block(*(_packed(w, b) for w, b in zip(self, biases, strict=True)))


class _Biases(NamedTuple):
    """What is added to the products with a `_Block`'s weights; None: nothing."""

    qkv: torch.Tensor | None
    out: torch.Tensor | None
    gate_up: torch.Tensor | None
    down: torch.Tensor | None


def _packed(weight: Weight, bias: torch.Tensor | None = None) -> Weight:
    return weight if isinstance(weight, Packed) else pack(weight, bias)


def _block(layer: Any) -> _Block:
    a, m = layer.self_attn, layer.mlp
    qkv, gate_up = _joined(a.q_proj, a.k_proj, a.v_proj), _joined(m.gate_proj, m.up_proj)
    return _Block(qkv, a.o_proj.weight, gate_up, m.down_proj.weight)


def _biases(layer: Any) -> _Biases:
    a, m = layer.self_attn, layer.mlp
    groups = (a.q_proj, a.k_proj, a.v_proj), (a.o_proj,), (m.gate_proj, m.up_proj), (m.down_proj,)
    return _Biases(*(None if g[0].bias is None else torch.cat([p.bias.data for p in g]) for g in groups))


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
    return rms_norm(x, norm.weight, norm.variance_epsilon)


def _head_norm(attn: Any, kind: str, x: torch.Tensor) -> torch.Tensor:
    """Queries ("q") or keys ("k"), (tokens, heads, head_dim), as a family with norms of heads has them; others as
    they are."""
    norm = getattr(attn, f"{kind}_norm", None)
    return x if norm is None else _norm(norm, x)


def _times(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A linear map of rows. One row alone is computed as two: CPU kernels sum it in another order, and an answer
    must not depend on how many are under way."""
    if x.shape[0] == 1:
        return _times(x.expand(2, -1).contiguous(), weight, bias)[:1]
    return weight.times(x, bias) if isinstance(weight, Packed) else F.linear(x, weight, bias)


def _linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    """A linear layer, with its LoRA if it carries one; the low-rank path runs in the activations' dtype."""
    if not hasattr(module, "lora_A"):
        return _times(x, module.weight, module.bias)
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    low = F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))
    return torch.add(module.base_layer(x), low, alpha=module.scaling["default"])


def _adapted(model: Any, spec: LoraSpec) -> list[str]:
    """Names of the layers that a LoRA adapts."""
    # The encoder stops at the last layer's K and V: LoRA on what is never computed would be dead weight.
    last, computed = f"model.layers.{model.config.num_hidden_layers - 1}.", ("k_proj", "v_proj")
    found = layers_of(model, spec.targets)
    return [n for n in found if spec.whole or n.endswith(computed) or not n.startswith(last)]


def _with_lora(model: Any, spec: LoraSpec, trains: bool = False, held: Mapping[str, Held] | None = None) -> Any:
    """A structural copy of `model` that shares every weight tensor and carries a LoRA: a fresh one (B = 0), or what is
    held."""
    shared: dict[int, Any] = {id(t): t for t in _tensors(model)}
    twin = copy.deepcopy(model, shared)
    names = _adapted(twin, spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a run repeats, whatever chance was used before it
        if trains:
            twin = adapt_by_peft(twin, names, spec.rank, spec.alpha)
        else:
            twin = adapt(twin, names, spec.rank, spec.alpha, held)
        if spec.start == "rank" and not held:  # A is stored (inputs, rank) there, and started as if inputs were outputs
            for name, parameter in twin.named_parameters():
                if "lora_A" in name:
                    nn.init.uniform_(parameter, -(spec.rank**-0.5), spec.rank**-0.5)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return twin


def _tensors(model: nn.Module) -> Iterable[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
