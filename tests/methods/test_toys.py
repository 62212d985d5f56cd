"""What is promised to a new method: one file and one line in the registry, and all of this goes by itself.

Each toy stands for a kind of method that SAC is not: appended tokens, positions of their own, embeddings as the
carrier, chunks that share a context, nothing to train, text.
"""

from __future__ import annotations

import dataclasses
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sac_rag import SacRag
from sac_rag.answer.assemble import memory_prompt, question_ids
from sac_rag.answer.chat import Message
from sac_rag.answer.engine import Engine, placing_of
from sac_rag.answer.reader import Sampling
from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.backbone import Backbone, LoraSpec
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods import METHODS
from sac_rag.compress.session import Session
from sac_rag.config import IndexConfig
from sac_rag.errors import ConfigError, LibraryMismatch
from sac_rag.evaluate.harness import evaluate
from sac_rag.evaluate.results import Results
from sac_rag.evaluate.retrieved import evaluate_retrieved
from sac_rag.families import FAMILIES
from sac_rag.models.embedder import Embedder
from sac_rag.records import Document
from sac_rag.train.objectives import configured
from sac_rag.train.run import run
from tests.conftest import byte_tokenizer, tiny_model
from tests.methods.kept import Kept

TOYS = {
    "appended": "tests.methods.appended:Appended",
    "spread": "tests.methods.spread:Spread",
    "states": "tests.methods.states:States",
    "shared": "tests.methods.shared:Shared",
    "evicted": "tests.methods.evicted:Evicted",
    "kept": "tests.methods.kept:Kept",
}
TRAINED = ("appended", "spread", "states", "shared")
QUICK = configured(
    steps=2, step_tokens=150, accumulate=1, ratios=(2.0,), ratio_weights=(1.0,), warmup=1, learning_rate=5e-3,
    first_context=80, max_context=80, distractors_from=0.0,
)  # fmt: skip
WHERE = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, entry in TOYS.items():
            patch.setitem(METHODS._entries, name, entry)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import json

    rows = [
        {"context": f"In {year} Ada went to Rome by boat.", "qas": [{"question": "When?", "answers": [str(year)]}]}
        for year in range(1900, 1912)
    ]
    path = tmp_path_factory.mktemp("data") / "ada.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained(name: str, data: Path, out: Path, base: Path, stop_after: int | None = None) -> None:
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_after

    lora = None if METHODS.load(name).adapts == "nothing" else LoraSpec(4, 8.0)
    run([str(data)], out, QUICK, base=str(base), method=name, lora=lora, stop=stop, **WHERE)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_base: Path) -> dict[str, str]:
    """An adapter of two steps for each toy that has one."""
    folder, found = tmp_path_factory.mktemp("toys"), {}
    for name in TOYS:
        if METHODS.load(name).trains:
            trained(name, data, folder / name, tiny_base)
        found[name] = str(folder / name) if METHODS.load(name).trains else "default"
    return found


@pytest.fixture(params=TOYS)
def config(request: Any, adapters: dict[str, str], tiny_config: IndexConfig) -> IndexConfig:
    return dataclasses.replace(tiny_config, method=request.param, adapter=adapters[request.param], ratio=3.0)


TEXTS = {"a.md": "Ada kept the lamp of Cape Verity for nine years.", "b.md": "Gas came from Leeds in 1911, by boat."}


@pytest.fixture
def rag(config: IndexConfig, tmp_path: Path) -> Any:
    with SacRag.index([], tmp_path / "a.lib", config, **WHERE) as rag:
        rag.put([Document(uri, text) for uri, text in TEXTS.items()])
        yield rag


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_one_small_file(name: str) -> None:
    source = inspect.getsource(import_module(TOYS[name].partition(":")[0]))
    assert len(source.splitlines()) < 60


def test_index_and_ask(rag: SacRag, config: IndexConfig) -> None:
    """Stored, found, loaded and read: the same answer again, through the gate, and from the library opened anew."""
    stats = rag.stats()
    assert (stats.documents, stats.passages) == (2, 2)
    answer = rag.ask("Who kept the lamp?", k=2, max_new_tokens=6)
    assert len(answer.sources) == 2 and answer.usage.source_tokens == sum(map(len, TEXTS.values()))
    assert 0 < answer.usage.anchors < answer.usage.source_tokens + 120
    rag.close()
    with SacRag.open(rag.library.path, **WHERE) as again:
        assert again.config.method == config.method
        assert again.ask("Who kept the lamp?", k=2, max_new_tokens=6).text == answer.text


def test_what_is_served_is_what_is_written_now(rag: SacRag) -> None:
    """The prompt of two stored passages has the logits of the memory that training would compose."""
    method, hits = rag.engine.method, rag.retrieve("Who kept the lamp?", None)
    hits = [*hits, *(h for h in rag.retrieve("gas by boat", None) if h.passage.id != hits[0].passage.id)]
    memories = rag.library.load([h.passage.id for h in hits])
    prompt = memory_prompt(method, hits, memories, "Who?").prompt
    fresh = method.compress([method.backbone.tokens(h.passage.text) for h in hits], rag.config.ratio)
    with torch.inference_mode():
        served = Session(method.backbone, [prompt.after(0)]).logits
        memory = method.passages([[kv] for kv in fresh])
        written = Session(method.backbone, [[memory, question_ids(method, "Who?")]]).logits
    torch.testing.assert_close(served, written, atol=0.1, rtol=0)  # stored in bf16
    assert prompt.extent(len(prompt.units()))[1] == memory.next_position + len(question_ids(method, "Who?"))


def test_a_conversation_of_two_memories(rag: SacRag) -> None:
    """Memories stand in different messages, each where its method places it, and a next turn goes on from the cache."""
    first, second = (rag.tag(p.id) for p in rag.library.passages())
    messages = [
        Message("user", rag.cite(f"Read {first} and answer.")),
        Message("assistant", ("Yes.",)),
        Message("user", rag.cite(f"Now {second}: who kept it?")),
    ]
    sampling = Sampling(max_new_tokens=4, min_new_tokens=4)
    prompt = rag.conversation(messages, sampling)
    assert len([p for p in prompt.parts if not isinstance(p, list)]) == 2
    for part in prompt.parts:
        if not isinstance(part, list):
            with torch.inference_mode():
                memory = part.load()
            assert (memory.start, memory.next_position) == (part.start, part.next_position)
    ids = list(rag.converse(messages, sampling))
    again = rag.converse([*messages, Message("assistant", ("No.",)), Message("user", ("Why?",))], sampling)
    assert len(ids) == len(list(again)) == 4 and again.reused > prompt.slots


@pytest.mark.parametrize("name", TRAINED)
def test_two_steps_with_resume(
    name: str, adapters: dict[str, str], data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """A run that is stopped after its first step ends as the undisturbed one, and has learned something."""
    trained(name, data, tmp_path, tiny_base, stop_after=1)
    halfway = load_file(tmp_path / "adapter.safetensors")
    trained(name, data, tmp_path, tiny_base)
    done, whole = (load_file(Path(p) / "adapter.safetensors") for p in (tmp_path, adapters[name]))
    assert done.keys() == whole.keys() and all(torch.equal(t, whole[n]) for n, t in done.items())
    assert any(not torch.equal(t, halfway[n]) for n, t in done.items())


@pytest.mark.parametrize("name", [n for n in TOYS if n not in TRAINED])
def test_what_has_nothing_to_train_says_so(name: str, data: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"method '{name}' has nothing to train"):
        trained(name, data, tmp_path, tiny_base)
    with pytest.raises(ConfigError, match=f"method '{name}' .* takes no adapter: leave 'runs/x' out"):
        Engine(str(tiny_base), name, "runs/x", **WHERE)


def test_evaluation(config: IndexConfig, data: Path, tmp_path: Path) -> None:
    kept = Results(tmp_path / "runs")
    how = {"model": config.model, "method": config.method, "adapter": config.adapter, "ratios": (3.0,), "limit": 4}
    (scored,) = evaluate([str(data)], readers=("memory",), results=kept, **how, **WHERE)
    assert (scored.n, scored.method, scored.ratio, scored.cut) == (4, config.method, 3.0, 0)
    assert scored.bytes_per_source_token and 0 <= scored.f1 <= 1
    assert evaluate([str(data)], readers=("memory",), results=kept, **how, **WHERE) == [scored] and kept.taken == 1
    (found,) = evaluate_retrieved([str(data)], config=config, readers=("memory",), limit=2, results=kept, **WHERE)
    assert (found.n, found.method, found.passages, found.cut) == (2, config.method, 12, 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TOYS)
def test_a_batch_writes_what_each_context_gets_alone(name: str, family: str) -> None:
    """Law 9, for contexts of one chunk and of several, on every family of models; each trains what it says it does."""
    lora = {} if METHODS.load(name).adapts == "nothing" else {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "v_proj"]}
    lora |= {"whole": True} if METHODS.load(name).adapts == "whole" else {}
    layout = PromptLayout(prefix="<|im_start|>sys\n").to_mapping()
    card = Card("tiny", "0", name, (3.0,), lora=lora, layout=layout)
    method = adapter.build(tiny_model(family), byte_tokenizer(), card)
    assert bool(method.parameters()) is METHODS.load(name).trains
    contexts = [[range(5, 45)], [range(60, 100), range(100, 117)], [range(200, 203)]]
    for together, context in zip(method.compress_contexts(contexts, 3.0), contexts, strict=True):
        (alone,) = method.compress_contexts([context], 3.0, batch_tokens=10)
        for a, b, chunk in zip(together, alone, context, strict=True):
            assert a.source_len == len(chunk) and torch.equal(a.positions, b.positions)
            torch.testing.assert_close(a.keys, b.keys, atol=5e-6, rtol=1e-4)
            torch.testing.assert_close(a.values, b.values, atol=5e-6, rtol=1e-4)


def test_the_card_names_the_placing_that_a_method_was_made_for(adapters: dict[str, str], tiny_base: Path) -> None:
    for name in TRAINED:
        card, made_for = Card.read(Path(adapters[name])), METHODS.load(name).made_for
        assert card.placing == made_for.unusual() == ({"positions": "packed"} if name in ("appended", "states") else {})
        assert placing_of(str(tiny_base), name, adapters[name]) == made_for
    assert placing_of(str(tiny_base), "kept") == METHODS.load("kept").made_for


def test_the_fingerprint(config: IndexConfig, rag: SacRag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library opens with what it was made with, and with nothing else."""
    engine, embedder = rag.engine, Embedder.shared(config.embedder, device="cpu")
    found = engine.fingerprint(config, embedder)
    assert found["method"] == config.method and "selector" not in found
    assert (found["adapter_sha256"] is None) is (config.adapter == "default")
    rag.close()
    monkeypatch.setattr(type(engine.method), "identity", lambda self: {"depends_on": 1})
    with pytest.raises(LibraryMismatch, match="depends_on is None there and 1 here"):
        SacRag.open(rag.library.path, **WHERE)


def test_an_option_is_in_the_fingerprint_by_itself(adapters: dict[str, str]) -> None:
    card = Card.read(Path(adapters["appended"]))
    usual, other = (
        adapter.build(tiny_model(), byte_tokenizer(), dataclasses.replace(card, options={"spread": spread}))
        for spread in (0.1, 0.2)
    )
    assert usual.identity() == {"lora_alpha": 8.0}
    assert other.identity() == {"lora_alpha": 8.0, "spread": 0.2}


def test_text_that_is_carried_is_read_as_text(tiny_base: Path) -> None:
    """Sub-contexts and all: the memory of kept words has the logits of the prompt in which they stand as text."""
    method = Engine(str(tiny_base), "kept", "default", **WHERE).method
    ids = method.backbone.tokens("The lamp of Cape Verity burned oil until 1911, when Ada Quill died. " * 12)
    (made,) = method.compress_contexts([method.pieces(ids)], 4.0)
    kept = [ids[510 * n + i] for n, kv in enumerate(made) for i in kv.slots.anchors.tolist()]
    text = [*method.backbone.template(method.layout.prefix), *kept, *question_ids(method, "Who died?")]
    with torch.inference_mode():
        got = Session(method.backbone, [[method.memory(made), question_ids(method, "Who died?")]])
        want = method.backbone.plain_logits(torch.tensor(text))[-1]
    assert len(made) == 2 and got.positions == [len(text)]
    torch.testing.assert_close(got.logits[0], want, atol=2e-5, rtol=1e-4)


def test_kept_text_may_be_read_by_adapted_weights() -> None:
    """As a finetuned reader reads what a compressor of words leaves."""

    class Finetuned(Kept):
        reads_with_lora = True

    backbone = Backbone(tiny_model(), byte_tokenizer(), LoraSpec(4, 8.0, whole=True))
    with torch.no_grad():
        for i, (_, p) in enumerate(backbone.trainable()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    method = Finetuned(backbone, PromptLayout(prefix="<|im_start|>sys\n"))
    (kv,) = method.compress([list(range(5, 60))], 5.0)
    kept = [5 + i for i in kv.slots.anchors.tolist()]
    with torch.no_grad():
        got = Session(backbone, [[method.memory([kv]), [7, 8, 9]]], use_lora=True).logits[0]
        ids = torch.tensor([*backbone.template(method.layout.prefix), *kept, 7, 8, 9])
        want = backbone.encoder(input_ids=ids[None]).logits[0, -1]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def test_chunks_of_one_context_share_what_they_have(adapters: dict[str, str], tiny_base: Path) -> None:
    method = Engine(str(tiny_base), "shared", adapters["shared"], **WHERE).method
    varied, dull = method.backbone.tokens("Ada Quill, keeper of 1911, x-rayed gulls? (Why!)"), [70] * 48
    (together,) = method.compress_contexts([[dull, varied]], 4.0)
    alone = method.compress([dull, varied], 4.0)
    assert together[0].anchors < alone[0].anchors and together[1].anchors > alone[1].anchors
    one, other = method.compress_contexts([[varied, dull], [varied[::-1], dull]], 1.0)
    assert not torch.allclose(one[1].values, other[1].values, atol=1e-3), "later chunks see what earlier ones kept"
