"""Texts to token ids and back, by `tokenizers` alone: with the ids of transformers' tokenizer of the same folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sac_rag.models.notes import noted

PROBES = (
    "The year 2024 was  10 times\n\n3 longer; don't WE'LL\tnaïve 漢字 🙂",
    "  two leading spaces, x=1234.5e-6 <|im_start|>user\nhi<|im_end|>\n",
    "<s>[INST] a </s> [SEP] <|endoftext|> ﬁne ",
    "",
)
"""Texts on which both must agree: digits after spaces, contractions, bytes, control tokens."""


class Encoded(dict[str, Any]):
    """What a tokenizer made of texts, by key or by attribute, as transformers gives it."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Tokenizer:
    """The part of a fast Hugging Face tokenizer that sac-rag asks for, under the same names.

    As those, it is not for two threads at once.
    """

    is_fast = True

    def __init__(self, said: Mapping[str, Any]) -> None:
        """said: what `load_tokenizer` notes of a tokenizer of transformers."""
        from tokenizers import Tokenizer as Backend

        self._backend = Backend.from_str(said["backend"])
        self._backend.no_padding()
        self._backend.no_truncation()
        self._splits = bool(said["split_special_tokens"])
        self.special_tokens_map: dict[str, Any] = said["special_tokens_map"]
        self.all_special_tokens: list[str] = said["all_special_tokens"]
        self.all_special_ids: list[int] = said["all_special_ids"]
        self.unk_token_id: int | None = said["unk_token_id"]
        self.pad_token_id: int | None = said["pad_token_id"]
        self.bos_token_id: int | None = said["bos_token_id"]
        self.eos_token_id: int | None = said["eos_token_id"]
        self.eos_token: str | None = said["eos_token"]
        self.model_max_length: int = said["model_max_length"]
        self.chat_template: str | None = said["chat_template"]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool | None = None,
        return_offsets_mapping: bool = False,
        **_: Any,
    ) -> Encoded:
        """ "input_ids" of a text, or of each of several; "offset_mapping", (start, end) in characters, likewise.

        split_special_tokens: whether special tokens that are spelled out in a text stay text.
        """
        splits = self._splits if split_special_tokens is None else split_special_tokens
        if self._backend.encode_special_tokens != splits:
            self._backend.encode_special_tokens = splits
        texts = [text] if isinstance(text, str) else list(text)
        encoded = self._backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        found: dict[str, list[Any]] = {"input_ids": [one.ids for one in encoded]}
        if return_offsets_mapping:
            found["offset_mapping"] = [one.offsets for one in encoded]
        return Encoded({name: values[0] for name, values in found.items()} if isinstance(text, str) else found)

    @property
    def backend_tokenizer(self) -> Any:
        """The tokenizer of `tokenizers` behind it."""
        return self._backend

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token of the vocabulary, or of each of several; that of the unknown one for others."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._backend.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """The tokens of the vocabulary as it writes them; None for an id that it has not."""
        return [self._backend.id_to_token(i) for i in ids]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        """The text of ids, its spaces as they are."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False, **told: Any
    ) -> str:
        """Messages (role, content) in the model's chat template, as text. told: variables of the template.

        Raises ValueError for no messages, and what a template raises.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        if not messages:
            raise ValueError("a chat template needs at least one message")
        told.pop("tokenize", None)
        rendered, _ = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            **{**self.special_tokens_map, **told},
        )
        text: str = rendered[0]
        return text


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder; transformers' own where it is more than a chain of `tokenizers`.

    Raises OSError, ValueError or KeyError for files that cannot be read.
    """
    said = noted("tokenizer", folder, lambda: _asked(folder))
    return Tokenizer(said) if said else _by_transformers(folder)


def _by_transformers(folder: Path) -> Any:
    import transformers

    from sac_rag.models.quiet import quiet

    with quiet():
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _asked(folder: Path) -> dict[str, Any]:
    """What makes up a tokenizer of transformers; nothing where ours would give other ids."""
    theirs = _by_transformers(folder)
    if not getattr(theirs, "is_fast", False):
        return {}
    try:
        said = {
            "backend": theirs.backend_tokenizer.to_str(),
            "split_special_tokens": bool(theirs.split_special_tokens),
            "special_tokens_map": _plain(theirs.special_tokens_map),
            "all_special_tokens": [str(token) for token in theirs.all_special_tokens],
            "all_special_ids": list(theirs.all_special_ids),
            "unk_token_id": theirs.unk_token_id,
            "pad_token_id": theirs.pad_token_id,
            "bos_token_id": theirs.bos_token_id,
            "eos_token_id": theirs.eos_token_id,
            "eos_token": None if theirs.eos_token is None else str(theirs.eos_token),
            "model_max_length": int(theirs.model_max_length),
            "chat_template": theirs.get_chat_template() if theirs.chat_template else None,
        }
        ours = Tokenizer(said)
    except Exception:  # a step that only Python knows cannot be written down, and says so as it likes
        return {}
    return said if all(_agree(ours, theirs, text) for text in PROBES) else {}


def _agree(ours: Tokenizer, theirs: Any, text: str) -> bool:
    for options in ({}, {"add_special_tokens": False}, {"add_special_tokens": False, "split_special_tokens": True}):
        mine, other = (t(text, return_offsets_mapping=True, **options) for t in (ours, theirs))
        if any(list(mine[name]) != list(other[name]) for name in ("input_ids", "offset_mapping")):
            return False
    ids = list(theirs(text)["input_ids"])
    return all(
        ours.decode(ids, skip_special_tokens=skip)
        == theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        for skip in (False, True)
    )


def _plain(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens by role as JSON holds them."""
    return {role: [*map(str, t)] if isinstance(t, list | tuple) else str(t) for role, t in tokens.items()}
