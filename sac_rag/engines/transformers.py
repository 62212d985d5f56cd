"""Memories in the cache of transformers: a question for the `generate` of a model of one's own.

Where every head keeps the same number of slots and nothing is added to scores, the cache is a plain one, for any
attention. Else heads are padded to the fullest of their layer and a bias hides what is padded: that is for
`attend_uneven`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from sac_rag.answer.prompt import Prompt
from sac_rag.compress.anchor_kv import Memory
from sac_rag.config import AskConfig
from sac_rag.engines.asking import laid_out
from sac_rag.errors import ConfigError, LibraryMismatch, MemoryInvalid
from sac_rag.pipeline import SacRag
from sac_rag.records import Hit

UNEVEN = "sac_uneven"
"""The name of our attention among transformers' implementations."""
ROUNDING = 2.0**-7
"""Largest difference of two copies of a weight, relative to the largest of its row: more than bf16 rounds."""


@dataclass(frozen=True)
class Prefilled:
    """A question whose memories are read: `model.generate(**prefilled.inputs, do_sample=False, max_new_tokens=64)`.

    A cache is used up by the generation that it is given to.
    """

    inputs: dict[str, Any]
    """Keyword arguments of `generate`: the cache, what is to be read (`input_ids`, (1, tokens)) and at which positions,
    the mask of both, and the ids that end an answer."""
    hits: tuple[Hit, ...]
    """The passages that are read, best first."""
    notices: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens of `input_ids`: `generate` gives them back in front of the answer."""
        count: int = self.inputs["input_ids"].shape[1]
        return count


def prefill(
    rag: SacRag,
    question: str,
    model: Any,
    ask: AskConfig | None = None,
    *,
    where: Mapping[str, Any] | None = None,
    hits: Sequence[Hit] | None = None,
    **settings: Any,
) -> Prefilled:
    """A question of `SacRag.ask` for `model.generate`. Arguments are those of `ask`; how tokens are chosen, and how
    many, is for `generate` to say.

    model: transformers' own, with the weights of the library's base model, on any device, in any number type. Raises
    LibraryMismatch for other weights, and as `laid_out` does. A model that cannot attend these memories raises
    ConfigError when it reads: see `attend_uneven`.
    """
    assembled = laid_out(rag, question, ask, where, hits, settings)
    return Prefilled(prefill_prompt(rag, assembled.prompt, model), assembled.hits, assembled.notices)


def prefill_prompt(rag: SacRag, prompt: Prompt, model: Any) -> dict[str, Any]:
    """Keyword arguments of `generate` for any prompt of this library, such as that of `SacRag.conversation`.

    What stands in front of a memory as text is read by `model` here. Raises LibraryMismatch and ConfigError as
    `prefill` does.
    """
    engine = rag.engine
    backbone = engine.method.backbone
    _check_same(backbone, model, f"the base model of {rag.library.path}")
    with engine.busy(), torch.no_grad():
        *parts, last = prompt.after(0)
    layers = [_Runs(model.config) for _ in range(backbone.kv_shape[0])]
    cache, position = Cache(layers=layers), 0
    with torch.no_grad():
        for part in parts:
            if isinstance(part, Memory):
                _put(part, layers, position, like=model)
                position = part.next_position
            else:
                model(**_inputs(model, cache, part, position), use_cache=True, logits_to_keep=1)
                position += len(part)
    if isinstance(last, Memory):
        raise MemoryInvalid("a prompt must end with at least one token: nothing follows from memory alone")
    ends = sorted(engine.reader.stop_ids)
    return {**_inputs(model, cache, last, position), "eos_token_id": ends, "pad_token_id": ends[0]}


def model_of(rag: SacRag) -> Any:
    """transformers' own model over the very weights that a library's engine holds, for who has none loaded."""
    decoder = rag.engine.method.backbone.decoder
    return getattr(decoder, "reference", decoder)


def attend_uneven(model: Any) -> Any:
    """Have a model attend heads that are filled unlike, and biases on their slots; the model itself, changed.

    Prompts without memory are attended as by "sdpa".
    """
    AttentionInterface.register(UNEVEN, _attention)
    AttentionMaskInterface.register(UNEVEN, sdpa_mask)
    model.set_attn_implementation(UNEVEN)
    return model


class _Runs(DynamicLayer):
    """One layer of a cache. Where its heads are filled unlike, each is padded to the fullest, and keys come out with
    `sac_bias`, (1, kv_heads, slots): what is added to scores, -inf where nothing is."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._config = config
        self._bias: torch.Tensor | None = None
        """Up to the last memory: tokens behind it have none."""

    def put(
        self, runs: Sequence[tuple[torch.Tensor, torch.Tensor]], biases: Sequence[torch.Tensor] | None, like: Any
    ) -> None:
        """Append the runs of a memory, keys and values (count, head_dim) a head; biases: (count,) a head."""
        before, most = self.get_seq_length(), max(len(keys) for keys, _ in runs)
        if biases is not None or any(len(keys) < most for keys, _ in runs):
            added = [torch.zeros(len(keys)) for keys, _ in runs] if biases is None else biases
            bias = pad_sequence([b.float().cpu() for b in added], batch_first=True, padding_value=-torch.inf)
            held = torch.zeros(1, len(runs), 0) if self._bias is None else self._bias.cpu()
            held = torch.cat((F.pad(held, (0, before - held.shape[-1])), bias[None]), dim=-1)
            self._bias = held.to(like.device, like.dtype)
        keys, values = (pad_sequence([run[i] for run in runs], batch_first=True)[None] for i in (0, 1))
        super().update(keys.to(like.device, like.dtype), values.to(like.device, like.dtype))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self._bias is not None:
            if (found := self._config._attn_implementation) != UNEVEN:
                raise ConfigError(
                    f"heads of this memory keep different numbers of slots, or add to their scores, which attention "
                    f"{found!r} cannot do: call attend_uneven(model) first, or index with even heads and ask with "
                    "prior 0"
                )
            keys.sac_bias = F.pad(self._bias, (0, keys.shape[-2] - self._bias.shape[-1]))
        return keys, values


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' "sdpa", with the bias that a cache of ours gives its keys in place of the mask that is the same in
    all layers: one prompt has no padding to be masked."""
    bias = getattr(key, "sac_bias", None)
    if bias is not None:
        tokens, slots = query.shape[2], key.shape[2]
        attention_mask = bias.repeat_interleave(query.shape[1] // key.shape[1], dim=1)[:, :, None]
        if tokens > 1:
            later = torch.full((tokens, slots), -torch.inf, dtype=bias.dtype, device=bias.device)
            attention_mask = attention_mask + later.triu(slots - tokens + 1)
    made: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return made


def _put(memory: Memory, layers: Sequence[_Runs], position: int, like: Any) -> None:
    if memory.start != position:
        raise MemoryInvalid(f"a memory placed at position {memory.start} stands at {position} of its prompt")
    none: list[None] = [None] * len(layers)
    biases = memory.layer_biases() or none
    for layer, runs, bias in zip(layers, memory.layer_runs(), biases, strict=True):
        layer.put(runs, bias, like)


def _inputs(model: Any, cache: Cache, ids: Sequence[int], position: int) -> dict[str, Any]:
    """What a model is given to read so many tokens from a position on."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    tokens = torch.tensor([list(ids)], device=model.device)
    seen = cache.get_seq_length() + len(ids)
    return {
        name: cache,
        "input_ids": tokens,
        "attention_mask": torch.ones(1, seen, dtype=torch.int64, device=model.device),
        "position_ids": torch.arange(position, position + len(ids), device=model.device)[None],
    }


def _check_same(backbone: Any, model: Any, what: str) -> None:
    """LibraryMismatch unless three rows of each weight, and the settings of positions and norms, are those of a
    backbone, but for rounding."""
    theirs = dict(model.named_parameters())
    for name, own in backbone.decoder.named_parameters():
        found = theirs.get(name)
        if found is None or found.shape != own.shape or not _close(own, found):
            other = "is not there" if found is None else f"of shape {tuple(found.shape)} is another"
            raise LibraryMismatch(
                f"this model is not {what}: its {name} {other}. Memories are keys and values of that model alone: give "
                "it as it is, without LoRA or quantisation, or model_of(rag)"
            )
    for setting in ("rope_parameters", "rms_norm_eps"):
        mine, its = (_plain(getattr(config, setting)) for config in (backbone.config, model.config))
        if mine != its:
            raise LibraryMismatch(f"this model is not {what}: its {setting} is {its}, not {mine}")


def _close(own: torch.Tensor, found: torch.Tensor) -> bool:
    rows = [0, len(own) // 2, len(own) - 1] if own.ndim > 1 else slice(None)
    a, b = (t.detach()[rows].float().cpu() for t in (own, found))
    return bool(((a - b).abs() <= ROUNDING * a.abs().amax(-1, keepdim=True)).all())


def _plain(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value
