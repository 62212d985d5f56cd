"""A question for transformers' own `generate`: the tokens are those of SacRag, whatever heads keep of its memories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sac_rag import SacRag
from sac_rag.answer.chat import Message
from sac_rag.answer.reader import Sampling
from sac_rag.engines.transformers import UNEVEN, attend_uneven, model_of, prefill, prefill_prompt
from sac_rag.errors import ConfigError, LibraryError, LibraryMismatch
from sac_rag.samples import documents, questions
from tests.conftest import byte_tokenizer, tiny_model
from tests.engines.library_questions import EVEN, METHODS, QUESTION, TOKENS, WHERE, library, ours


@pytest.fixture(params=["llama", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_model(request.param).save_pretrained(tmp_path / request.param)
    byte_tokenizer().save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


@pytest.fixture(params=METHODS)
def rag(request: pytest.FixtureRequest, base: Path, tiny_config: Any, tmp_path: Path) -> Iterator[SacRag]:
    with library(base, request.param, tiny_config, tmp_path) as rag:
        yield rag


def loaded(rag: SacRag, attention: str) -> Any:
    """A model of the user's own, from the folder of the base."""
    model = transformers.AutoModelForCausalLM.from_pretrained(rag.config.model, dtype=torch.float32).eval()
    if attention == UNEVEN:
        return attend_uneven(model)
    model.set_attn_implementation(attention)
    return model


def said(model: Any, inputs: dict[str, Any], tokens: int = TOKENS, **settings: Any) -> list[int]:
    """Ids that `generate` adds, without the one that ends them."""
    out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **settings)[0]
    added = out[inputs["input_ids"].shape[1] :].tolist()
    return added[:-1] if added[-1] in inputs["eos_token_id"] else added


ASKS: tuple[dict[str, Any], ...] = (
    {"k": 1},
    {"k": 3},
    {"k": 3, "placing": "packed"},
    {"k": 2, "prior": 0.5},
    {"k": 3, "fidelity": "mixed"},
    {"k": 3, "fidelity": "text"},
)


def test_the_tokens_are_ours(rag: SacRag) -> None:
    model = loaded(rag, UNEVEN)
    for ask in ASKS:
        prefilled = prefill(rag, QUESTION, model, **ask)
        want, got = ours(rag, prefilled.hits, **ask), said(model, prefilled.inputs)
        assert got == want and len(got) > 1, ask
        answer = rag.ask(QUESTION, max_new_tokens=TOKENS, **ask)
        text = byte_tokenizer().decode(got, skip_special_tokens=True).strip()
        assert text == answer.text and prefilled.hits == answer.sources, ask
        assert prefilled.tokens == prefilled.inputs["input_ids"].shape[1]


@pytest.mark.parametrize("rag", EVEN, indirect=True)
def test_even_heads_are_a_plain_prefix(rag: SacRag) -> None:
    for attention in ("sdpa", "eager"):
        model = loaded(rag, attention)
        prefilled = prefill(rag, QUESTION, model, k=3, prior=0.0)
        assert said(model, prefilled.inputs) == ours(rag, prefilled.hits, k=3, prior=0.0), attention


@pytest.mark.parametrize("rag", ["kvzip", "attention-matching"], indirect=True)
def test_heads_that_differ_need_an_attention_that_can(rag: SacRag) -> None:
    for attention in ("sdpa", "eager"):
        model = loaded(rag, attention)
        prefilled = prefill(rag, QUESTION, model, k=1)
        with pytest.raises(ConfigError, match=f"attention '{attention}' cannot do: call attend_uneven"):
            said(model, prefilled.inputs)


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_without_its_bias_the_answer_would_be_another(rag: SacRag) -> None:
    """What the tests above compare does depend on what is hidden and added: without it, logits are far off."""
    model = loaded(rag, UNEVEN)
    right, blind = (prefill(rag, QUESTION, model, k=2, prior=0.0).inputs for _ in range(2))
    for layer in cache_of(blind).layers:
        layer._bias = None if layer._bias is None else torch.zeros_like(layer._bias)
    with torch.no_grad():
        a, b = (model(**plain(inputs)).logits[0, -1] for inputs in (right, blind))
    assert torch.allclose(a, b, atol=1e-3) == (rag.config.method in EVEN)


def cache_of(inputs: dict[str, Any]) -> Any:
    return inputs.get("cache", inputs.get("past_key_values"))


def plain(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if not name.endswith("token_id")}


def test_a_conversation_with_memories_in_its_middle(rag: SacRag) -> None:
    model = loaded(rag, UNEVEN)
    first, second, _ = (rag.tag(p.id) for p in rag.library.passages())
    messages = [
        Message("user", rag.cite(f"Read {first} and answer.")),
        Message("assistant", ("Yes.",)),
        Message("user", rag.cite(f"Now {second}: who?")),
    ]
    prompt = rag.conversation(messages)
    got = said(model, prefill_prompt(rag, prompt, model))
    with torch.inference_mode():
        assert got == rag.engine.reader.generate([prompt], Sampling(TOKENS))[0].token_ids


@pytest.mark.parametrize("base", ["llama"], indirect=True)
@pytest.mark.parametrize("rag", ["kvzip"], indirect=True)
def test_a_prompt_without_memory_is_read_as_ever(rag: SacRag) -> None:
    ids = torch.tensor([rag.token_ids("The tides follow")])
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.int64), ids), dim=1)
    mask = (torch.arange(padded.shape[1]) >= 3).long()[None]
    answers = []
    for attention in ("sdpa", UNEVEN):
        model = loaded(rag, attention)
        answers.append(model.generate(input_ids=padded, attention_mask=mask, max_new_tokens=8, do_sample=False))
    assert torch.equal(*answers)


@pytest.mark.parametrize("base", ["llama"], indirect=True)
@pytest.mark.parametrize("rag", ["kvzip"], indirect=True)
def test_several_rows_from_one_cache(rag: SacRag) -> None:
    """Samples of one prompt: its cache repeated, as transformers has it."""
    model = loaded(rag, UNEVEN)
    prefilled = prefill(rag, QUESTION, model, k=2)
    want = ours(rag, prefilled.hits, k=2)
    inputs = {n: v.repeat(3, 1) if isinstance(v, torch.Tensor) else v for n, v in prefilled.inputs.items()}
    cache_of(inputs).batch_repeat_interleave(3)
    out = model.generate(**inputs, max_new_tokens=len(want), do_sample=False)
    assert out[:, prefilled.tokens :].tolist() == [want] * 3


@pytest.mark.parametrize("base", ["llama"], indirect=True)
@pytest.mark.parametrize("rag", ["kvzip"], indirect=True)
def test_a_draft_is_taken_back(rag: SacRag) -> None:
    """Prompt lookup guesses tokens and crops the cache where it was wrong."""
    model = loaded(rag, UNEVEN)
    prefilled = prefill(rag, QUESTION, model, k=2)
    want = ours(rag, prefilled.hits, k=2)
    assert said(model, prefilled.inputs, prompt_lookup_num_tokens=3) == want


@pytest.mark.parametrize("base", ["llama"], indirect=True)
@pytest.mark.parametrize("rag", ["full-kv"], indirect=True)
def test_the_engines_own_weights_serve_too(rag: SacRag) -> None:
    model = model_of(rag)
    own = rag.engine.method.backbone.decoder.model.embed_tokens.weight
    assert model.get_input_embeddings().weight.data_ptr() == own.data_ptr()
    prefilled = prefill(rag, QUESTION, model, k=2, prior=0.0)
    assert said(model, prefilled.inputs) == ours(rag, prefilled.hits, k=2, prior=0.0)


@pytest.mark.parametrize("rag", ["full-kv"], indirect=True)
def test_another_model_is_refused(rag: SacRag, base: Path) -> None:
    family = base.name
    with pytest.raises(LibraryMismatch, match="is not the base model of"):
        prefill(rag, QUESTION, tiny_model(family, seed=1))
    short = tiny_model(family)
    del short.model.layers[2:]
    with pytest.raises(LibraryMismatch, match=r"layers\.2\..* is not there"):
        prefill(rag, QUESTION, short)
    stretched = tiny_model(family)
    stretched.config.rope_parameters = {**stretched.config.rope_parameters, "rope_theta": 5e5}
    with pytest.raises(LibraryMismatch, match="rope_parameters"):
        prefill(rag, QUESTION, stretched)
    one = tiny_model(family)
    with torch.no_grad():
        one.model.layers[2].mlp.down_proj.weight[-1].mul_(1.05)
    with pytest.raises(LibraryMismatch, match=r"layers\.2\.mlp\.down_proj"):
        prefill(rag, QUESTION, one)
    prefill(rag, QUESTION, tiny_model(family).to(torch.bfloat16))  # the same, rounded


@pytest.mark.parametrize("base", ["llama"], indirect=True)
@pytest.mark.parametrize("rag", ["full-kv"], indirect=True)
def test_what_judges_an_answer_is_refused(rag: SacRag) -> None:
    model = model_of(rag)
    for settings in ({"abstain": True}, {"fidelity": "auto"}, {"reader": "adapter"}):
        with pytest.raises(ConfigError, match="are for SacRag.ask"):
            prefill(rag, QUESTION, model, **settings)
    with pytest.raises(ConfigError, match="empty"):
        prefill(rag, " ", model)
    with pytest.raises(LibraryError, match="no passage of .* fits the question"):
        prefill(rag, QUESTION, model, where={"team": "desk"})
    alone = prefill(rag, QUESTION, model, where={"team": "desk"}, closed_book=True)
    assert alone.hits == () and said(model, alone.inputs)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.minutes
def test_the_default_model_answers_as_ours(tmp_path: Path) -> None:
    """Heads of its adapter keep unlike numbers of slots, and lower ranks are held back."""
    files = [str(documents() / q.document) for q in questions()[:6]]
    with SacRag.index(files, tmp_path / "a.lib", **WHERE) as rag:
        model = attend_uneven(model_of(rag))
        for sample in questions()[:6]:
            prefilled = prefill(rag, sample.question, model)
            answer = rag.ask(sample.question)
            text = rag.engine.tokenizer.decode(said(model, prefilled.inputs, 64), skip_special_tokens=True).strip()
            assert text == answer.text and len(prefilled.hits) == 5
