"""Libraries of methods without training: made for a model that has no adapter, stored, opened, asked, verified."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from sac_rag import SacRag
from sac_rag.answer import gate
from sac_rag.answer.assemble import question_ids
from sac_rag.answer.chat import Message
from sac_rag.answer.engine import Engine
from sac_rag.answer.reader import Sampling
from sac_rag.compress.selectors import anchor_count
from sac_rag.compress.session import Session
from sac_rag.config import IndexConfig, from_mapping, options_of
from sac_rag.errors import AdapterError, ConfigError, GateError, LibraryMismatch
from sac_rag.families import FAMILIES
from sac_rag.library.codecs import get_codec
from sac_rag.pipeline import config_of
from sac_rag.records import Document
from tests.conftest import byte_tokenizer, tiny_model

NAMES = ("full-kv", "kvzip", "attention-matching")
WHERE = {"device": "cpu", "dtype": "float32"}
TEXTS = {"a.md": "Ada kept the lamp of Cape Verity for nine years.", "b.md": "Gas came from Leeds in 1911, by boat."}


def config_for(name: str, tiny_config: IndexConfig, **changes: Any) -> IndexConfig:
    usual = {"method": name, "adapter": "default", "ratio": 5.0 if name == "full-kv" else 3.0}
    return dataclasses.replace(tiny_config, **{**usual, **changes})


@pytest.fixture(params=NAMES)
def config(request: Any, tiny_config: IndexConfig) -> IndexConfig:
    return config_for(request.param, tiny_config)


@pytest.fixture
def rag(config: IndexConfig, tmp_path: Path) -> Any:
    with SacRag.index([], tmp_path / "a.lib", config, **WHERE) as rag:
        rag.put([Document(uri, text) for uri, text in TEXTS.items()])
        yield rag


def slots(method: str, tokens: int, ratio: float) -> int:
    return tokens if method == "full-kv" else anchor_count(tokens, ratio)


def fields_of(kv: Any) -> list[torch.Tensor]:
    return [t for t in (kv.keys, kv.values, kv.positions, kv.counts, kv.bias) if t is not None]


def test_index_and_ask(rag: SacRag, config: IndexConfig) -> None:
    lengths = [len(text) for text in TEXTS.values()]
    assert rag.stats().source_tokens == sum(lengths)
    memories = rag.library.load([p.id for p in rag.library.passages()])
    assert sorted(m.anchors for m in memories) == sorted(slots(config.method, n, config.ratio) for n in lengths)
    answer = rag.ask("Who kept the lamp?", k=2, max_new_tokens=6)
    assert len(answer.sources) == 2
    rag.close()
    with SacRag.open(rag.library.path, **WHERE) as again:
        assert again.config.ratio == (1.0 if config.method == "full-kv" else 3.0)
        assert again.ask("Who kept the lamp?", k=2, max_new_tokens=6).text == answer.text


def test_an_answer_from_a_library_of_full_kv_is_that_from_its_text(tiny_config: IndexConfig, tmp_path: Path) -> None:
    """To the rounding of what is stored: the prompt of one stored passage against the same prompt as plain text."""
    with SacRag.index([], tmp_path / "a.lib", config_for("full-kv", tiny_config), **WHERE) as rag:
        rag.put([Document("a.md", TEXTS["a.md"])])
        method, (passage,) = rag.engine.method, rag.library.passages()
        memory = method.passages([rag.library.load([passage.id])])
        ids = [*method.backbone.template(method.layout.prefix), *method.backbone.tokens(passage.text)]
        with torch.inference_mode():
            got = Session(method.backbone, [[memory, question_ids(method, "Who?")]]).logits[0]
            want = method.backbone.plain_logits(torch.tensor([*ids, *question_ids(method, "Who?")]))[-1]
        torch.testing.assert_close(got, want, atol=0.1, rtol=0)


def test_workers_store_the_same_bytes(config: IndexConfig, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text * 3)
    found = []
    for at, workers in enumerate((1, 2)):
        with SacRag.index(folder, tmp_path / f"{at}.lib", config, workers=workers, **WHERE) as rag:
            found.append(rag.library.load(sorted(p.id for p in rag.library.passages())))
    for a, b in zip(*found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(fields_of(a), fields_of(b), strict=True))


@pytest.mark.parametrize(("codec", "error"), [("bf16", 0.005), ("int8", 0.01), ("int4", 0.1)])
def test_a_codec_keeps_the_runs(codec: str, error: float, rag: SacRag) -> None:
    (kv,) = rag.engine.compress([TEXTS["a.md"]], rag.config.ratio)
    made = get_codec(codec)
    back = made.decode(made.encode(kv))
    assert torch.equal(back.positions, kv.positions) and torch.equal(back.counts, kv.counts)
    torch.testing.assert_close(back.values.float(), kv.values, atol=error * float(kv.values.abs().max()), rtol=0)
    assert (back.bias is None) is (kv.bias is None) is (rag.config.method != "attention-matching")
    assert kv.bias is None or torch.equal(back.bias, kv.bias)


def test_a_conversation_of_two_memories(rag: SacRag) -> None:
    first, second = (rag.tag(p.id) for p in rag.library.passages())
    messages = [
        Message("user", rag.cite(f"Read {first} and answer.")),
        Message("assistant", ("Yes.",)),
        Message("user", rag.cite(f"Now {second}: who kept it?")),
    ]
    sampling = Sampling(max_new_tokens=4, min_new_tokens=4)
    assert len(list(rag.converse(messages, sampling))) == 4
    again = rag.converse([*messages, Message("assistant", ("No.",)), Message("user", ("Why?",))], sampling)
    assert len(list(again)) == 4 and again.reused > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_every_family_has_libraries(name: str, family: str, tiny_config: IndexConfig, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path / family)
    byte_tokenizer().save_pretrained(tmp_path / family)
    config = config_for(name, tiny_config, model=str(tmp_path / family))
    with SacRag.index([], tmp_path / "a.lib", config, **WHERE) as rag:
        rag.put([Document(uri, text) for uri, text in TEXTS.items()])
        assert len(rag.ask("Who kept the lamp?", k=2, max_new_tokens=3).sources) == 2


# -- settings ------------------------------------------------------------------------------------------------


def test_method_and_options_are_in_the_fingerprint(tiny_config: IndexConfig, tmp_path: Path) -> None:
    config = config_for("kvzip", tiny_config, option=("even_heads=true",))
    with SacRag.index([], tmp_path / "a.lib", config, **WHERE) as rag:
        rag.put([Document("a.md", TEXTS["a.md"])])
        print_ = rag.library.fingerprint
        assert (print_["method"], print_["even_heads"], print_["option"]) == ("kvzip", True, ["even_heads=true"])
        assert (print_["adapter"], print_["adapter_sha256"], print_["prefix"]) == (
            *("default", None),
            rag.engine.method.layout.prefix,
        )
        (memory,) = rag.library.load([p.id for p in rag.library.passages()])
        assert len(set(memory.counts.flatten().tolist())) == 1
    assert config_of(tmp_path / "a.lib") == dataclasses.replace(config, codec="bf16"), "there is no basis"
    with SacRag.open(tmp_path / "a.lib", **WHERE) as again:
        assert again.engine.method.options == {"even_heads": True}
    with pytest.raises(LibraryMismatch, match=r"option is \('even_heads=true',\) there and \(\) here"):
        SacRag.open(tmp_path / "a.lib", config=config_for("kvzip", tiny_config), **WHERE)


def test_a_library_without_options_names_none(rag: SacRag) -> None:
    """As libraries from before there were any."""
    assert "option" not in rag.library.fingerprint and config_of(rag.library.path).option == ()


def test_options_are_read_as_json_or_text() -> None:
    assert options_of(["a=1", "b=true", "c=x=y", "d="]) == {"a": 1, "b": True, "c": "x=y", "d": ""}
    assert IndexConfig(option=("b=1", "a=2")).option == ("a=2", "b=1")
    for wrong, message in ((["a"], "write key=value"), (["a=1", "a=2"], "given twice"), (["=1"], "write key=value")):
        with pytest.raises(ConfigError, match=message):
            options_of(wrong)
    for wrong in ("a=1", [1], 3):
        with pytest.raises(ConfigError, match="option"):
            from_mapping(IndexConfig, {"option": wrong})


def test_an_unknown_option_is_named(tiny_base: Path) -> None:
    with pytest.raises(AdapterError, match="option sped of 'kvzip'.*even_heads"):
        Engine(str(tiny_base), "kvzip", "default", option=("sped=1",), **WHERE)


def test_full_kv_has_one_ratio(tiny_config: IndexConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ratio is 3, but method 'full-kv' keeps every token"):
        SacRag.index([], tmp_path / "a.lib", config_for("full-kv", tiny_config, ratio=3.0), **WHERE)


def test_sac_without_its_adapter(tiny_config: IndexConfig, tmp_path: Path) -> None:
    """Adapter "none" is the method as training would start; options stand in place of an adapter's."""
    config = dataclasses.replace(tiny_config, adapter="none", ratio=3.0, option=("causal=true",))
    with SacRag.index([], tmp_path / "a.lib", config, **WHERE) as rag:
        rag.put([Document("a.md", TEXTS["a.md"])])
        assert rag.engine.method.causal and rag.engine.method.backbone.lora is None
        (memory,) = rag.library.load([p.id for p in rag.library.passages()])
        assert memory.anchors == anchor_count(len(TEXTS["a.md"]), 3.0)
    with SacRag.open(tmp_path / "a.lib", **WHERE) as again:
        assert again.ask("Who?", k=1, max_new_tokens=2).sources


# -- the gate ------------------------------------------------------------------------------------------------


def test_the_gate_forgives_a_near_tie_and_nothing_else(tiny_config: IndexConfig, tmp_path: Path, monkeypatch) -> None:
    """Another kernel may keep another of two tokens that weigh alike; another choice altogether is refused."""
    with SacRag.index([], tmp_path / "a.lib", config_for("kvzip", tiny_config), **WHERE) as rag:
        rag.put([Document("a.md", TEXTS["a.md"])])
        method = rag.engine.method
        scores = type(method).scores

        def nudged(self: Any, chunk: Any, whole: Any) -> torch.Tensor:
            found = scores(self, chunk, whole)
            flat = found.flatten()
            order = flat.argsort(descending=True)
            border = anchor_count(len(chunk), 3.0) * found.shape[0] * found.shape[1]
            pair = order[border - 1 : border + 1]
            flat[pair] = flat[pair.flip(0)]
            return flat.view(found.shape)

        monkeypatch.setattr(type(method), "scores", nudged)
        assert gate._stored(rag.engine, rag.library) < 0.02
        monkeypatch.setattr(type(method), "scores", lambda *given: -scores(*given))
        with pytest.raises(GateError, match="this model makes"):
            gate._stored(rag.engine, rag.library)
