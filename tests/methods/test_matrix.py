"""Every registered method through every room, on a Llama and a Qwen3: what is registered is taken up by itself.

Trained where it trains, saved and reloaded, stored and placed, answering in a conversation of two memories; and the
laws of memories that hold for whatever a method does inside.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sac_rag import SacRag
from sac_rag.answer.chat import Message
from sac_rag.answer.engine import Engine
from sac_rag.answer.reader import Sampling
from sac_rag.compress.backbone import LoraSpec, Reading
from sac_rag.compress.methods import METHODS
from sac_rag.compress.rope import rotate
from sac_rag.config import IndexConfig
from sac_rag.errors import ConfigError, LibraryMismatch
from sac_rag.evaluate.harness import evaluate
from sac_rag.models.loading import load_base
from sac_rag.records import Document
from sac_rag.train.objectives import configured
from sac_rag.train.run import run
from tests.conftest import byte_tokenizer, tiny_model

FAMILIES = ("llama", "qwen3")
TRAINED = [name for name in METHODS if METHODS.load(name).trains]
COMPRESS = [name for name in METHODS if not METHODS.load(name).reads_with_lora]
OBJECTIVES = ("qa", "lm", "ae", "ae+lm", "summarise")
WHERE = {"device": "cpu", "dtype": "float32"}
SHORT = {
    "steps": 2, "step_tokens": 150, "accumulate": 1, "ratios": (2.0, 5.0), "ratio_weights": (0.5, 0.5), "warmup": 1,
    "learning_rate": 5e-3, "first_context": 80, "max_context": 80,
}  # fmt: skip
TEXTS = {"a.md": "Ada kept the lamp of Cape Verity for nine years.", "b.md": "Gas came from Leeds in 1911, by boat."}
IDS = [list(range(5, 45)), list(range(60, 100)), list(range(100, 117)), list(range(200, 203))]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a tiny random model of each family."""
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp("bases") / family
        tiny_model(family).save_pretrained(found[family])
        byte_tokenizer().save_pretrained(found[family])
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Questions and summaries of the same texts, by objective."""
    folder = tmp_path_factory.mktemp("data")
    texts = {year: f"In {year} Ada went to Rome by boat." for year in range(1900, 1912)}
    asked = [{"context": t, "qas": [{"question": "When?", "answers": [str(y)]}]} for y, t in texts.items()]
    said = [{"document": t, "items": [{"query": "", "summary": f"Ada in {y}."}]} for y, t in texts.items()]
    found = {}
    for name, rows in (("asked", asked), ("said", said)):
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = dict.fromkeys(OBJECTIVES, found["asked"])
    return plain | {"summarise": found["said"]}


Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(bases: dict[str, Path], data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """An adapter of two steps by method, family and objective, made once."""
    folder = tmp_path_factory.mktemp("adapters")

    def trained(name: str, family: str = "llama", objective: str = "qa") -> Path:
        path: Path = folder / f"{name}-{family}-{objective}"
        if not path.exists():
            lora = None if METHODS.load(name).adapts == "nothing" else LoraSpec(4, 8.0)
            config = configured(objective, **SHORT)
            run([str(data[objective])], path, config, base=str(bases[family]), method=name, lora=lora, **WHERE)
        return path

    return trained


@pytest.fixture
def engine(bases: dict[str, Path], train: Train) -> Callable[[str, str], Engine]:
    """An engine by method and family, its adapter trained for two steps where it has one."""

    def loaded(name: str, family: str) -> Engine:
        adapter = str(train(name, family)) if name in TRAINED else "default"
        return Engine.shared(str(bases[family]), name, adapter, **WHERE)

    return loaded


@pytest.fixture
def config(bases: dict[str, Path], train: Train, tiny_embedder: Path) -> Callable[[str, str], IndexConfig]:
    def configured(name: str, family: str) -> IndexConfig:
        adapter = str(train(name, family)) if name in TRAINED else "default"
        return dataclasses.replace(
            IndexConfig(), model=str(bases[family]), method=name, adapter=adapter,
            ratio=METHODS.load(name).only_ratio or 3.0,
            embedder=str(tiny_embedder), passage_tokens=128,
        )  # fmt: skip

    return configured


matrix = pytest.mark.parametrize("family", FAMILIES)


@matrix
@pytest.mark.parametrize("name", TRAINED)
def test_two_steps_train_save_and_reload(name: str, family: str, train: Train, engine: Any, bases: Any) -> None:
    """Tensors on disk are those of the method that is loaded from them, and not those that it began with."""
    saved, method = load_file(train(name, family) / "adapter.safetensors"), engine(name, family).method
    loaded = method.parameters()
    assert saved.keys() == loaded.keys() and len(saved) > 1
    assert all(torch.equal(t.float(), loaded[n].detach().float()) for n, t in saved.items())
    base, tokenizer = load_base(bases[family], torch.device("cpu"), torch.float32)
    fresh = _untrained(method, base, tokenizer)
    moved = {n for n, t in saved.items() if not torch.equal(t.float(), fresh[n].detach().bfloat16().float())}
    own = {n for n in saved if "lora_" not in n}
    assert moved & own or not own, f"none of {sorted(own)} has learned anything"
    assert moved - own or own == set(saved), "LoRA has not learned anything"


@matrix
@pytest.mark.parametrize("name", METHODS)
def test_the_decoder_is_the_base_model(name: str, family: str, engine: Any) -> None:
    """Law 4: its weights and its logits without memory, bit for bit, after training and compressing."""
    method, plain = engine(name, family).method, tiny_model(family)
    method.compress(IDS[:1], 3.0)
    own = dict(method.backbone.decoder.named_parameters())
    assert all(torch.equal(p, own[n]) for n, p in plain.named_parameters())
    ids = torch.tensor([IDS[0]])
    with torch.inference_mode():
        assert torch.equal(method.backbone.plain_logits(ids[0]), plain(input_ids=ids).logits[0])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", TRAINED)
def test_every_objective_trains_every_method(name: str, objective: str, train: Train) -> None:
    lines = (train(name, "llama", objective) / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    shown = {k: last[k] for k in ("loss", "recall") if k in last}
    assert len(lines) == last["step"] == 2 and last["extra"]["norm"] > 0
    assert shown and all(0 < value < 20 for value in shown.values())


@matrix
@pytest.mark.parametrize("name", METHODS)
def test_memories_are_sound(name: str, family: str, engine: Any) -> None:
    """Law 8 for any method: places within the passage, the same again, and no more slots at a higher ratio."""
    method = engine(name, family).method
    at = {ratio: method.compress(IDS, ratio) for ratio in (2.0, 5.0)}
    for ids, low, high in zip(IDS, at[2.0], at[5.0], strict=True):
        for kv in (low, high):
            assert kv.validate().source_len >= len(ids) and kv.slots.anchors.numel()
            assert tuple(kv.counts.shape) == method.backbone.kv_shape[:2]
        assert 1 <= high.anchors <= low.anchors
    for kv, repeated in zip(at[5.0], method.compress(IDS, 5.0), strict=True):
        assert torch.equal(kv.keys, repeated.keys) and torch.equal(kv.positions, repeated.positions)


@matrix
@pytest.mark.parametrize("name", METHODS)
def test_company_changes_nothing(name: str, family: str, engine: Any) -> None:
    """Law 9: contexts of one chunk and of several are written in one batch as alone."""
    method = engine(name, family).method
    contexts = [IDS[:1], IDS[1:3], IDS[3:]]
    for together, context in zip(method.compress_contexts(contexts, 3.0), contexts, strict=True):
        (alone,) = method.compress_contexts([context], 3.0, batch_tokens=10)
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a.positions, b.positions) and torch.equal(a.counts, b.counts)
            torch.testing.assert_close(a.keys, b.keys, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(a.values, b.values, atol=1e-5, rtol=1e-4)


@matrix
@pytest.mark.parametrize("name", COMPRESS)
def test_memories_stand_anywhere(name: str, family: str, engine: Any) -> None:
    """Law 3: placed further on, keys are turned by that and nothing else, and what is read behind them is the same."""
    method = engine(name, family).method
    backbone, parts = method.backbone, method.compress(IDS[:2], 3.0)
    near, far = (method.memory(parts, start=start, opens=False) for start in (0, 37))
    front = method.memory((), opens=False) if method.ahead(opens=False) else None
    assert front is None and far.next_position == near.next_position + 37
    torch.testing.assert_close(
        far.keys, rotate(near.keys, torch.full((len(near.keys),), 37), backbone.inv_freq), atol=2e-5, rtol=1e-4
    )
    torch.testing.assert_close(far.values, near.values, atol=0, rtol=0)
    asked = Reading(torch.tensor([7, 8, 9]), torch.arange(3), 0)
    with torch.inference_mode():
        here, there = (backbone.read([memory], [asked]) for memory in (near, far))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-3)


@matrix
@pytest.mark.parametrize("name", COMPRESS)
def test_stored_placed_and_asked_in_a_conversation(name: str, family: str, config: Any, tmp_path: Path) -> None:
    """Two memories in different messages, each where its method places it; the library opens again, and with nothing
    else than what it was made with."""
    with SacRag.index([], tmp_path / "a.lib", config(name, family), **WHERE) as rag:
        rag.put([Document(uri, text) for uri, text in TEXTS.items()])
        answer = rag.ask("Who kept the lamp?", k=2, max_new_tokens=6)
        assert len(answer.sources) == 2 and answer.usage.anchors > 0
        first, second = (rag.tag(p.id) for p in rag.library.passages())
        messages = [
            Message("user", rag.cite(f"Read {first} and answer.")),
            Message("assistant", ("Yes.",)),
            Message("user", rag.cite(f"Now {second}: who kept it?")),
        ]
        sampling = Sampling(max_new_tokens=4, min_new_tokens=4)
        prompt = rag.conversation(messages, sampling)
        placed = [part for part in prompt.parts if not isinstance(part, list)]
        assert len(placed) == 2
        for part in placed:
            with torch.inference_mode():
                memory = part.load()
            assert (memory.start, memory.next_position) == (part.start, part.next_position)
        said = list(rag.converse(messages, sampling))
        again = rag.converse([*messages, Message("assistant", ("No.",)), Message("user", ("Why?",))], sampling)
        assert len(said) == len(list(again)) == 4 and again.reused > prompt.slots
    with SacRag.open(tmp_path / "a.lib", **WHERE) as rag:
        assert rag.config.method == name
        assert rag.ask("Who kept the lamp?", k=2, max_new_tokens=6).text == answer.text
    other = next(n for n in COMPRESS if n != name)
    with pytest.raises(LibraryMismatch, match="method"):
        SacRag.index([], tmp_path / "a.lib", config(other, family), **WHERE)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in COMPRESS])
def test_what_reads_whole_texts_makes_no_library(name: str, config: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"method '{name}' reads whole texts and compresses nothing"):
        SacRag.index([], tmp_path / "a.lib", config(name, "llama"), **WHERE)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in TRAINED])
def test_what_has_nothing_to_train_says_so(name: str, data: Any, bases: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"method '{name}' has nothing to train"):
        run([str(data["qa"])], tmp_path, configured("qa", **SHORT), base=str(bases["llama"]), method=name, **WHERE)


@matrix
@pytest.mark.parametrize("name", COMPRESS)
def test_evaluation(name: str, family: str, config: Any, data: dict[str, Path]) -> None:
    own = config(name, family)
    how = {"model": own.model, "method": name, "adapter": own.adapter, "ratios": (3.0,), "limit": 4}
    (scored,) = evaluate([str(data["qa"])], readers=("memory",), **how, **WHERE)
    assert (scored.n, scored.method, scored.ratio, scored.cut) == (4, name, METHODS.load(name).only_ratio or 3.0, 0)
    assert scored.bytes_per_source_token and 0 <= scored.f1 <= 1


def _untrained(method: Any, base: Any, tokenizer: Any) -> dict[str, torch.Tensor]:
    """The parameters of the same method as it begins."""
    from sac_rag.compress.backbone import Backbone

    fresh = type(method)(Backbone(base, tokenizer, method.backbone.lora), method.layout, **method.options)
    return dict(fresh.parameters())
