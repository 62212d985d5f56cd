"""Texts to unit vectors. A BERT runs on its own code; other models borrow transformers', or sentence-transformers'."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sac_rag.config import DEFAULT_EMBEDDER, fingerprint
from sac_rag.errors import ConfigError, ModelError, SacError, check_process
from sac_rag.foreign import leaves, read_json, without_control
from sac_rag.models.fingerprints import fingerprint_of, tokenizer_fingerprint_of
from sac_rag.models.pinned import find_pinned
from sac_rag.models.sources import resolve_embedder
from sac_rag.records import unicode_of

PROMPTS = {"passage": ("passage", "document"), "query": ("query",)}
"""What a text is → the names that model cards use for its prompt."""
WINDOWS = "equal-mean-1"
"""How long passages are handled; part of the fingerprint."""
ALIKE = 1e-4
"""Distance between two windows' vectors up to which they say the same."""


@dataclass(frozen=True)
class _Plan:
    """What the JSON files of a model folder say about turning tokens into a vector."""

    transformer: Path
    pooling: str
    """"mean" or "cls"; empty when only sentence-transformers knows how."""
    dim: int
    max_tokens: int
    """Longest input with its special tokens; 0 leaves it to the tokenizer."""
    lower: bool
    prompts: dict[str, str]


class Embedder:
    """A sentence-embedding model. Weights are loaded by the first `encode`, in fp32.

    `name` is a pinned name, a folder or a hub id of a sentence-transformers model; `device` a torch device, by default
    CUDA if there is one, else the CPU. Raises ModelError when the model cannot be had or used. Safe to share between
    threads; `Embedder.shared` gives all libraries of a process one.
    """

    _shared: ClassVar[dict[tuple[str, str, str], Embedder]] = {}
    _sharing = threading.Lock()

    @classmethod
    def shared(cls, name: str = DEFAULT_EMBEDDER, *, device: str = "auto", fetch: bool = True) -> Embedder:
        """The embedder of this name on a device, loaded once a process; anew when its files have changed.

        fetch: whether it may be fetched, see `resolve_base`.
        """
        from sac_rag.models.loading import choose_device

        made = cls(name, device=str(choose_device(device)), fetch=fetch)
        with cls._sharing:
            return cls._shared.setdefault((str(made.path), made.fingerprint, str(made._device)), made)

    def __init__(
        self,
        name: str = DEFAULT_EMBEDDER,
        *,
        device: str | None = None,
        fetch: bool = True,
    ) -> None:
        self.name = name
        self.path = resolve_embedder(name, fetch=fetch)
        try:
            self._plan = _read_plan(self.path)
        except (AttributeError, TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise ModelError(f"{self.path} does not say how its model makes vectors ({error!r})") from error
        self._device = device
        self._tokenizer: Any = None
        self._max_tokens = 0
        self._forward: Callable[[Any, Any], Any] | None = None
        self._around: tuple[list[int], list[int]] = ([], [])
        self._control: frozenset[int] = frozenset()
        """Ids that no text becomes: "</s>" in a passage is four characters, although a word of some vocabularies."""
        self._busy = threading.Lock()
        self._pid = os.getpid()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._plan.dim

    @property
    def fits(self) -> float | None:
        """Cosine below which the best passage hardly fits a question; None where that has not been measured."""
        pinned = find_pinned(self.name, "embedder")
        return pinned.fits if pinned else None

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over weights, config, tokenizer and the handling of long texts."""
        return fingerprint(
            {
                "model": fingerprint_of(self.path),
                "tokenizer": tokenizer_fingerprint_of(self.path / self._plan.transformer),
                "windows": WINDOWS,
            }
        )

    def encode(self, texts: Sequence[str], *, batch_size: int = 32, kind: str = "passage") -> np.ndarray:
        """Vectors of `texts`, float32 of shape (len(texts), dim), each of length 1, in order.

        `kind` is "passage" or "query"; it picks the model's own prompt, if it has one. `batch_size` counts inputs of
        the model. A text longer than the model reads is cut into equal windows whose unit vectors are averaged; of a
        query by how far each is from their median, as what is asked is not what most of a long message speaks of.
        A vector does not depend on the other texts beyond rounding (about 1e-6).
        """
        if isinstance(texts, str):
            raise ConfigError("encode takes a list of texts, not one str: pass [text]")
        if kind not in PROMPTS:
            raise ConfigError(f"kind is {kind!r}; use {' or '.join(PROMPTS)}")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        check_process(self._pid, "the embedder was made")
        prompt = next((p for n in PROMPTS[kind] if (p := self._plan.prompts.get(n))), "")
        with self._busy:
            return self._encode(texts, batch_size, prompt, weighed=kind == "query")

    def _encode(self, texts: Sequence[str], batch_size: int, prompt: str, *, weighed: bool) -> np.ndarray:
        self._load()
        windows, owners = self._windows(texts, prompt)
        vectors = np.empty((len(windows), self.dim), np.float32)
        # Neighbours of like length waste little padding; a stable order gives equal batches for equal inputs.
        order = sorted(range(len(windows)), key=lambda index: len(windows[index]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            vectors[batch] = self._run([windows[index] for index in batch])
        sums = np.zeros((len(texts), self.dim), np.float32)
        if weighed and len(windows) > len(texts):
            vectors *= _distances(vectors, np.asarray(owners))[:, None]
        np.add.at(sums, owners, vectors)
        return _unit(sums)

    def _windows(self, texts: Sequence[str], prompt: str) -> tuple[list[list[int]], list[int]]:
        before, after = self._around
        room = self._max_tokens - len(before) - len(after)
        if self._plan.lower:
            texts = [text.lower() for text in texts]
        inputs = [prompt + unicode_of(text) for text in texts]
        # Text is data: "[SEP]" in a passage is five characters, not a control token.
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        encoded = self._tokenizer(inputs, **options)["input_ids"]
        windows, owners = [], []
        for owner, found in enumerate(encoded):
            ids = without_control(found, self._control, self._tokenizer.unk_token_id)
            count = max(1, -(-len(ids) // room))
            for part in range(count):  # equal parts: a short tail would weigh as much as a full window
                piece = ids[len(ids) * part // count : len(ids) * (part + 1) // count]
                windows.append([*before, *piece, *after])
                owners.append(owner)
        return windows, owners

    def _run(self, windows: list[list[int]]) -> np.ndarray:
        import torch

        assert self._forward is not None
        longest = max(map(len, windows))
        pad = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([window + [pad] * (longest - len(window)) for window in windows], device=self._device)
        mask = torch.tensor([[1] * len(w) + [0] * (longest - len(w)) for w in windows], device=self._device)
        try:
            with torch.inference_mode():
                vectors = self._forward(ids, mask).float().cpu().numpy()
        except (IndexError, RuntimeError) as error:  # shapes that its config says and its weights have not, or no room
            raise ModelError(f"{self.path} cannot compute {len(windows)} texts of {longest} tokens: {error}") from error
        if not np.isfinite(vectors).all():
            raise ModelError(f"{self.name} gave NaN or Inf: its weights are damaged or do not fit the device")
        return _unit(vectors)

    def _load(self) -> None:
        if self._forward is not None:
            return
        import torch

        from sac_rag.models.checking import check_sample
        from sac_rag.models.tokenizer import load_tokenizer

        check_sample(self.path)
        self._device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        folder = self.path / self._plan.transformer
        try:
            self._tokenizer = load_tokenizer(folder)
            self._around = _special_ids(self._tokenizer)
            self._control = frozenset(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}
            self._max_tokens = self._plan.max_tokens or min(self._tokenizer.model_max_length, 512)
            self._forward = self._plain(folder) if self._plan.pooling else self._borrowed()
        except SacError:
            raise
        except Exception as error:  # what reads a folder's files raises anything over wrong ones, a bare Exception too
            raise ModelError(f"{self.path} cannot be loaded as an embedding model ({error})") from error

    def _plain(self, folder: Path) -> Callable[[Any, Any], Any]:
        from sac_rag.models.bert import load_bert

        states_of = load_bert(folder, self._device) or self._by_transformers(folder)
        first = self._plan.pooling == "cls"

        def forward(ids: Any, mask: Any) -> Any:
            states = states_of(ids, mask)
            if first:
                return states[:, 0]
            weights = mask.unsqueeze(-1).to(states.dtype)
            return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)

        return forward

    def _by_transformers(self, folder: Path) -> Callable[[Any, Any], Any]:
        import torch
        import transformers

        from sac_rag.models.quiet import quiet

        options = {
            "local_files_only": True,
            "use_safetensors": True,
            "trust_remote_code": False,
            "dtype": torch.float32,
        }
        with quiet():
            model = transformers.AutoModel.from_pretrained(folder, **options).to(self._device).eval()
        return lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state

    def _borrowed(self) -> Callable[[Any, Any], Any]:
        from sac_rag.models.borrowed import check_borrowed

        check_borrowed(self.path)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ModelError(
                f"{self.name} is no plain mean- or cls-pooled model and needs another package: "
                f"pip install sentence-transformers"
            ) from error
        from sac_rag.models.quiet import quiet

        options = {"use_safetensors": True}
        with quiet():
            model = SentenceTransformer(
                str(self.path),
                device=self._device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs=options,
            ).eval()

        def forward(ids: Any, mask: Any) -> Any:
            return model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]

        return forward


def _distances(vectors: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Of each window, its distance to the median of its text's; 1 where a text has one or two, or all are alike."""
    found = np.ones(len(vectors), np.float32)
    for owner in np.unique(owners):
        own = owners == owner
        if own.sum() > 2:
            away = np.linalg.norm(vectors[own] - np.median(vectors[own], axis=0), axis=1)
            found[own] = away if away.max() > ALIKE else 1.0
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def _special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The control tokens that the model expects before and after a text."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    outer = tokenizer("a")["input_ids"]
    for start in range(len(outer) - len(inner) + 1):
        if outer[start : start + len(inner)] == inner:
            return outer[:start], outer[start + len(inner) :]
    raise ModelError("the tokenizer changes a text when it adds its control tokens; this model cannot be used")


def _read_plan(folder: Path) -> _Plan:
    modules: Any = _json(folder / "modules.json") or [{"type": "Transformer", "path": ""}]
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    transformer = Path(modules[0].get("path", ""))
    if any(leaves(str(module.get("path", ""))) for module in modules):
        raise ModelError(f"{folder / 'modules.json'} names a module outside of the folder")
    config = _json(folder / transformer / "config.json")
    pooling: dict[str, Any] = {}
    dim = int(config.get("hidden_size", 0))
    for kind, module in zip(kinds, modules, strict=True):
        settings = _json(folder / str(module.get("path", "")) / "config.json") if kind in ("Pooling", "Dense") else {}
        if kind == "Pooling":
            pooling = settings
            if settings.get("include_prompt") is False:
                raise ModelError(f"{folder} leaves its prompt out of the pooling, which is not supported")
        dim = int(settings.get("out_features", dim))
    plain = kinds in (["Transformer"], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
    mode = _pooling_mode(pooling) if pooling else "mean"
    extra: dict[str, Any] = {}
    for path in sorted((folder / transformer).glob("sentence_*_config.json")):
        extra |= _json(path)
    limits = [
        extra.get("max_seq_length"),
        _json(folder / transformer / "tokenizer_config.json").get("model_max_length"),
    ]
    limits.append(config.get("max_position_embeddings"))
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet") and limits[-1]:
        limits[-1] -= 2  # these count positions from the padding id on
    prompts = _json(folder / "config_sentence_transformers.json").get("prompts") or {}
    return _Plan(
        transformer=transformer,
        pooling=mode if plain and mode in ("mean", "cls") else "",
        dim=dim,
        max_tokens=int(min((limit for limit in limits if limit), default=0)),
        lower=bool(extra.get("do_lower_case")),
        prompts={str(name): str(text) for name, text in prompts.items()},
    )


def _pooling_mode(settings: dict[str, Any]) -> str:
    if "pooling_mode" in settings:
        return str(settings["pooling_mode"])
    old = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    active = [old.get(key, key) for key, on in settings.items() if key.startswith("pooling_mode_") and on]
    return active[0] if len(active) == 1 else "several"


def _json(path: Path) -> Any:
    """The content of an optional JSON file; an empty dict when there is none."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error})") from error
