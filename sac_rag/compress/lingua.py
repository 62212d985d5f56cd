"""LLMLingua-2's own weights, by the package `llmlingua`: which words of a text they keep."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from sac_rag.errors import ConfigError

_BETWEEN, _LABEL = "\x1e", "\x1f"


def check(folder: str) -> None:
    """Raises ConfigError unless a folder holds weights of LLMLingua-2, as safetensors: nothing is fetched, no code of
    theirs is run, and nothing is unpickled."""
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise ConfigError(
            f"{folder!r} holds no weights of LLMLingua-2 (config.json and *.safetensors): fetch a model such as "
            "microsoft/llmlingua-2-xlm-roberta-large-meetingbank into a folder of that name, or leave the option out"
        )


def kept_spans(folder: str, text: str, rate: float) -> list[tuple[int, int]]:
    """The words that stay, as spans of the text's characters, ascending; rate: the share of tokens that is to stay.

    Raises ConfigError as `check`, and where the package is not installed.
    """
    found, at = [], 0
    made = _compressor(folder).compress_prompt_llmlingua2(
        [text], rate=rate, return_word_label=True, word_sep=_BETWEEN, label_sep=_LABEL
    )
    for labelled in made["fn_labeled_original_prompt"].split(_BETWEEN):
        word, _, label = labelled.rpartition(_LABEL)
        start = text.find(word, at) if word else -1
        if start < 0:  # a word that its tokenizer writes otherwise
            continue
        at = start + len(word)
        if label == "1":
            found.append((start, at))
    return found


@cache
def _compressor(folder: str) -> Any:
    check(folder)
    try:
        from llmlingua import PromptCompressor
    except ImportError as error:
        raise ConfigError(
            f"LLMLingua-2's own weights are read by the package llmlingua ({error}): pip install 'sac-rag[llmlingua]'"
        ) from None
    local = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
    return PromptCompressor(str(Path(folder).expanduser()), "cpu", model_config=local, use_llmlingua2=True)
