"""Mixed prompts are text prompts and memory prompts at once; "auto" and abstaining act on a calibrated confidence."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from sac_rag import AskConfig, SacRag
from sac_rag.answer.assemble import memory_prompt, mixed_prompt, text_prompt, texts_of
from sac_rag.answer.confidence import Thresholds, reader_name, says_nothing
from sac_rag.answer.reader import Sampling
from sac_rag.compress.anchor_kv import Memory
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.placing import Placing
from sac_rag.compress.session import Session
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.families import FAMILIES
from sac_rag.records import NO_ANSWER, Document, Hit, Passage
from tests.conftest import grid

QUESTION = "Who kept the lamp?"
TEXTS = ["The lamp of Cape Verity burned oil.", "Ada Quill kept it for nine years.", "Gas came from Leeds in 1911."]


def hits_of(texts=TEXTS, cosines=(0.9, 0.6, None)):
    return [
        Hit(Passage(f"{i:032x}", "doc", i, text, 0, len(text)), score=1.0, dense=cosine)
        for i, (text, cosine) in enumerate(zip(texts, cosines, strict=True))
    ]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def case(make_sac):
    method = make_sac(trained=True)
    return method, hits_of(), method.compress([method.backbone.tokens(t) for t in TEXTS], 5.0)


def by_transformers(backbone, parts):
    """Next logits (vocabulary,) of memories and tokens in any order, by transformers' own forward and cache."""
    from transformers import DynamicCache

    cache, position, slots = DynamicCache(), 0, 0
    for part in parts:
        if isinstance(part, Memory):
            for layer, (keys, values) in enumerate(zip(*grid(part), strict=True)):
                cache.update(keys[None], values[None], layer)
            position, slots = part.next_position, slots + part.slots
        else:
            n = len(part)
            with torch.no_grad():
                out = backbone.decoder(
                    input_ids=torch.tensor([part]),
                    attention_mask=torch.ones(1, slots + n, dtype=torch.int64),
                    position_ids=torch.arange(position, position + n)[None],
                    past_key_values=cache,
                )
            position, slots = position + n, slots + n
    return out.logits[0, -1]


def test_all_as_text_is_the_text_prompt_and_none_the_memory_prompt(case):
    method, hits, memories = case
    mixed = mixed_prompt(method, hits, 3, [], QUESTION)
    assert mixed == text_prompt(method, hits, QUESTION) and mixed.fidelity == "text"
    mixed, memory = mixed_prompt(method, hits, 0, memories, QUESTION), memory_prompt(method, hits, memories, QUESTION)
    assert mixed.fidelity == memory.fidelity == "memory" and mixed.source_tokens == memory.source_tokens
    (a, ids), (b, other_ids) = mixed.prompt.parts, memory.prompt.parts
    assert ids == other_ids and torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)


@pytest.mark.parametrize("placing", ["source", "packed"])
@pytest.mark.parametrize("texts", [1, 2])
def test_mixed_stands_where_the_text_prompt_stands(case, texts, placing):
    method, hits, memories = case
    backbone, layout = method.backbone, method.layout
    mixed = mixed_prompt(method, hits, texts, memories[texts:], QUESTION, placing=Placing(placing))
    body, tail, ids = mixed.prompt.parts
    (whole,) = text_prompt(method, hits, QUESTION).prompt.parts
    assert body[: len(backbone.template(layout.prefix))] == backbone.template(layout.prefix)
    assert body == whole[: len(body)] and whole[len(body) :][:5] == backbone.tokens(TEXTS[texts])[:5]
    assert whole[-len(ids) :] == ids
    rest = [method.prefix, *memories[texts:]]
    taken = sum(m.source_len if placing == "source" else m.anchors for m in rest)
    assert tail.start == len(body)
    assert mixed.prompt.extent(len(mixed.prompt.units()))[1] == tail.start + taken + len(ids)
    assert mixed.fidelity == "mixed" and mixed.hits == tuple(hits) and mixed.notices == ()
    assert mixed.anchors == sum(m.anchors for m in rest)
    with torch.inference_mode():
        got = Session(backbone, [mixed.prompt.after(0)]).logits[0]
    assert torch.allclose(got, by_transformers(backbone, mixed.prompt.parts), atol=1e-4)
    plain = mixed_prompt(method, hits, texts, memories[texts:], QUESTION, placing=Placing("source")).prompt
    assert placing == "packed" or plain.tokens == mixed.prompt.tokens


def test_an_adapter_without_a_prefix_has_the_text_first(make_sac):
    method = make_sac(layout=PromptLayout(prefix=""))
    memories = method.compress([method.backbone.tokens(t) for t in TEXTS], 5.0)
    mixed = mixed_prompt(method, hits_of(), 1, memories[1:], QUESTION)
    body, tail, _ = mixed.prompt.parts
    assert body == [*method.backbone.tokens(TEXTS[0]), *method.backbone.template("\n\n")] and tail.start == len(body)


def test_what_does_not_fit_is_left_out_from_the_end(case):
    method, hits, memories = case
    backbone = method.backbone
    own = method.prefix.source_len
    fixed = own + len(text_prompt(method, [], QUESTION).prompt.parts[0])
    sizes = [len(backbone.tokens(t)) for t in TEXTS]
    gap = len(backbone.template(method.layout.separator))

    def room(tokens):
        return mixed_prompt(
            method, hits, 1, memories[1:], QUESTION, reserve=backbone.context_length - fixed - tokens
        )  # fmt: skip

    both = room(sizes[0] + gap + sizes[1])
    assert both.hits == tuple(hits[:2]) and both.fidelity == "mixed" and "1 of 3 passages" in both.notices[0]
    one = room(sizes[0] + gap + sizes[1] - 1)
    assert one.hits == tuple(hits[:1]) and one.fidelity == "text" and "2 of 3 passages" in one.notices[0]
    assert room(sizes[0] + gap - 1 - own).hits == ()
    with pytest.raises(ConfigError, match="ask a shorter question"):
        room(-1)


def test_which_passages_are_text_goes_by_rank_tokens_and_score(case):
    method, hits, _ = case
    sizes = [len(method.backbone.tokens(t)) for t in TEXTS]
    count = {"passages": 3, "tokens": sum(sizes)}
    assert texts_of(method, hits, **count) == 3
    assert texts_of(method, hits, **{**count, "passages": 2}) == 2
    assert texts_of(method, hits, **{**count, "tokens": sum(sizes) - 1}) == 2
    assert texts_of(method, hits, **count, score=0.7) == 1
    assert texts_of(method, hits, **count, score=0.5) == 2, "a passage that the dense search did not find has no cosine"


# -- asking ------------------------------------------------------------------------------------------------------


@pytest.fixture
def calibrated(tiny_adapter, tiny_config, tmp_path):
    """calibrated(memory=…, text=…, fallback=…, doubt=…): a library whose adapter has these thresholds; without any, no
    calibration."""
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_adapter, folder)

    def make(**limits) -> SacRag:
        entry = {"abstain": {r: limits.get(r) for r in ("memory", "text")}, "fallback": limits.get("fallback")}
        if "doubt" in limits:
            entry["doubt"] = limits["doubt"]
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps({**card, "calibration": {"5": entry} if limits else {}}))
        rag = SacRag.index([], tmp_path / "a.lib", dataclasses.replace(tiny_config, adapter=str(folder)))
        rag.put([Document(f"d{i}", text * 2, meta={"n": i}) for i, text in enumerate(TEXTS)])
        return rag

    return make


SHORT = {"k": 2, "max_new_tokens": 8}


def test_answers_say_how_they_were_read_and_how_sure_they_are(calibrated):
    with calibrated() as rag:
        hits = rag.retrieve(QUESTION, AskConfig(k=2))
        for fidelity in ("memory", "mixed", "text"):
            ask = AskConfig(**SHORT, fidelity=fidelity)
            answer = rag.ask(QUESTION, ask)
            (want,) = rag.engine.reader.generate([rag.assemble(hits, QUESTION, ask).prompt], Sampling(8))
            assert answer.fidelity == fidelity and answer.confidence == pytest.approx(want.logprob, abs=1e-5) and want
            assert answer.confidence < 0 and not answer.fell_back and not answer.abstained and answer.withheld is None
        alike = dataclasses.replace(rag.ask(QUESTION, **SHORT, text=True), timings=answer.timings)
        assert alike == answer
        one = rag.ask(QUESTION, k=1, max_new_tokens=8, fidelity="mixed")
        assert one.fidelity == "text" and one.usage.anchors == 0, "one passage leaves nothing for memory"
        assert rag.ask(QUESTION, **SHORT, fidelity="mixed", text_tokens=3).fidelity == "memory"


def test_auto_falls_back_below_the_threshold(calibrated):
    with calibrated(fallback=0.0) as rag:
        memory, text = (rag.ask(QUESTION, **SHORT, fidelity=f) for f in ("memory", "text"))
        stream = rag.stream(QUESTION, **SHORT, fidelity="auto")
        pieces = list(stream)
        answer = stream.answer
        assert answer.fell_back and answer.fidelity == "text"
        assert "".join(pieces).strip() == answer.text == text.text != memory.text
        assert answer.confidence == pytest.approx(text.confidence)
        assert f"confidence {memory.confidence:.2f}, below 0.00" in answer.notices[0]
        for name in ("anchors", "prompt_tokens", "completion_tokens"):
            assert getattr(answer.usage, name) == getattr(memory.usage, name) + getattr(text.usage, name)
        assert answer.usage.source_tokens == text.usage.source_tokens
        nothing = rag.ask(QUESTION, **SHORT, fidelity="auto", where={"n": 9})
        assert not nothing.fell_back and nothing.text == NO_ANSWER
        alone = rag.ask(QUESTION, **SHORT, fidelity="auto", where={"n": 9}, closed_book=True)
        assert not alone.fell_back and "the model alone" in alone.notices[0]


@pytest.mark.parametrize("fallback", [-1e6, None])
def test_auto_stays_with_memory_above_it(calibrated, fallback):
    with calibrated(fallback=fallback, memory=-1.0) as rag:
        memory = rag.stream(QUESTION, **SHORT)
        shown = list(memory)
        auto = rag.stream(QUESTION, **SHORT, fidelity="auto")
        pieces = list(auto)
        assert dataclasses.replace(auto.answer, timings=memory.answer.timings) == memory.answer
        assert len(shown) > 1 and pieces == (shown if fallback is None else [memory.answer.text])
        t = auto.answer.timings
        assert t.first_token_s <= t.total_s and (fallback is None or t.total_s - t.first_token_s < t.first_token_s)


def test_a_doubtful_answer_is_withheld(calibrated):
    with calibrated(memory=0.0, text=None) as rag:
        memory = rag.ask(QUESTION, **SHORT)
        stream = rag.stream(QUESTION, **SHORT, abstain=True)
        assert list(stream) == [NO_ANSWER] == [stream.answer.text]
        answer = stream.answer
        assert answer.abstained and answer.withheld == memory.text and answer.sources == memory.sources
        assert answer.confidence == pytest.approx(memory.confidence) and answer.usage == memory.usage
        sure = rag.ask(QUESTION, **SHORT, abstain=True, fidelity="text")
        assert not sure.abstained and sure.withheld is None and sure.text != NO_ANSWER
        mixed = rag.ask(QUESTION, **SHORT, abstain=True, fidelity="mixed")
        assert mixed.fidelity == "mixed" and not mixed.abstained
        nothing = rag.ask(QUESTION, **SHORT, abstain=True, where={"n": 9}, fidelity="text")
        assert nothing.abstained and nothing.notices == ("no passage matched",) and nothing.sources == ()
        b = rag.engine.method.backbone
        long = "why " * ((b.context_length - SHORT["max_new_tokens"]) // len(b.tokens("why ")) - 30)
        unread = rag.ask(long, **SHORT, abstain=True, fidelity="text")
        assert unread.abstained and unread.sources == () and unread.notices[-1] == "no passage was read"


def test_a_doubtful_answer_is_marked_by_the_threshold_of_the_card(calibrated, tmp_path):
    with calibrated(doubt={"memory": 0.0, "text": None}) as rag:
        marked = rag.ask(QUESTION, **SHORT)
        assert marked.doubtful and marked.account()["doubtful"] is True and not marked.abstained
        assert (
            not rag.ask(QUESTION, **SHORT, text=True).doubtful
            and not rag.ask(QUESTION, **SHORT, fidelity="mixed").doubtful
        )
        nothing = rag.ask(QUESTION, **SHORT, where={"n": 9})
        alone = rag.ask(QUESTION, **SHORT, where={"n": 9}, closed_book=True)
        assert not nothing.doubtful and not alone.doubtful, "calibrated was what is read from passages"
        path = tmp_path / "adapter" / "card.json"
        card = json.loads(path.read_text())
        low = marked.confidence - 0.01
        for entry, doubtful in (
            ({"doubt": {"memory": marked.confidence + 0.01, "text": None}}, True),
            ({"doubt": {"memory": low, "text": None}}, False),
            ({}, False),
            ({"doubt": {"memory": 1.0, "text": None}}, False),
        ):
            given = {"abstain": {"memory": None, "text": None}, "fallback": None, **entry}
            path.write_text(json.dumps({**card, "calibration": {"5": given}}, indent=len(str(entry))))
            assert rag.ask(QUESTION, **SHORT).doubtful is doubtful, "a card that was calibrated meanwhile counts"
        with pytest.raises(AdapterError, match="calibration at 5 is damaged"):
            rag.ask(QUESTION, **SHORT, abstain=True)


def test_a_withheld_answer_is_not_marked_as_well(calibrated):
    with calibrated(memory=0.0, doubt={"memory": 0.0, "text": 0.0}) as rag:
        withheld = rag.ask(QUESTION, **SHORT, abstain=True)
        assert withheld.abstained and not withheld.doubtful
        assert rag.ask(QUESTION, **SHORT, fidelity="text", abstain=True).doubtful


def test_a_passage_that_hardly_fits_is_told(calibrated, monkeypatch):
    from sac_rag.models.embedder import Embedder

    with calibrated() as rag:
        best = max(hit.score for hit in rag.retrieve(QUESTION, AskConfig(k=2)))
        assert rag.embedder.fits is None and rag.ask(QUESTION, **SHORT).notices == ()
        monkeypatch.setattr(Embedder, "fits", best + 0.01)
        told = f"the best passage hardly fits the question (score {best:.2f}): the answer may be made up"
        assert rag.ask(QUESTION, **SHORT).notices == rag.ask(QUESTION, **SHORT, text=True).notices == (told,)
        assert rag.ask(QUESTION, **SHORT, search="lexical").notices == (), "a share of words is no cosine"
        assert rag.ask(QUESTION, **SHORT, hits=rag.retrieve(QUESTION)).notices == (), "the caller chose them"
        assert rag.ask(QUESTION, **SHORT, where={"n": 9}).notices == ("no passage matched",)
        monkeypatch.setattr(Embedder, "fits", best)
        assert rag.ask(QUESTION, **SHORT).notices == ()


def test_a_fallback_is_judged_again(calibrated):
    with calibrated(fallback=0.0, text=0.0, memory=None) as rag:
        stream = rag.stream(QUESTION, **SHORT, fidelity="auto", abstain=True)
        assert list(stream) == [NO_ANSWER]
        assert stream.answer.fell_back and stream.answer.abstained and stream.answer.fidelity == "text"
        assert stream.answer.withheld == rag.ask(QUESTION, **SHORT, text=True).text


def test_without_calibration_the_remedy_is_named(calibrated, tmp_path):
    with calibrated() as rag:
        for wish in ({"abstain": True}, {"fidelity": "auto"}):
            with pytest.raises(ConfigError, match="not calibrated at ratio 5,") as error:
                rag.stream(QUESTION, **wish)
            assert f"--adapter {tmp_path / 'adapter'} --write" in str(error.value)
        assert rag.ask(QUESTION, **SHORT, fidelity="auto", text=True).fidelity == "text", "nothing to fall back from"
        folder = tmp_path / "adapter"
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps({**card, "calibration": {"15": {}}}))
        with pytest.raises(ConfigError, match=r"\(it is at 15\)"):
            rag.ask(QUESTION, abstain=True)


@pytest.mark.parametrize(
    "entry", [{}, {"abstain": {"memory": -1}}, {"abstain": {"memory": "x", "text": 0}, "fallback": 0},
              {"abstain": {"memory": 1.5, "text": -1}, "fallback": None}, [],
              {"abstain": {"memory": -1, "text": -1}, "fallback": None, "doubt": {"memory": "x", "text": None}},
              {"abstain": {"memory": -1, "text": -1}, "fallback": None, "doubt": []}]
)  # fmt: skip
def test_a_damaged_calibration_is_an_error(tiny_adapter, tmp_path, entry):
    shutil.copytree(tiny_adapter, tmp_path / "a")
    path = tmp_path / "a" / "card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "calibration": {"5": entry}}))
    with pytest.raises(AdapterError, match="calibration at 5 is damaged"):
        Thresholds.of(path.parent, 5.0)
    path.write_text(json.dumps({**card, "calibration": [entry]}))
    with pytest.raises(AdapterError, match="not thresholds by ratio"):
        Thresholds.of(path.parent, 5.0)


def test_the_models_own_words_count_as_no_answer():
    assert says_nothing(" the passages do not say") and not says_nothing("The passages do not say who.")
    never = Thresholds({"memory": None, "text": -1.0}, None)
    assert never.abstains("memory", -0.1, NO_ANSWER) and not never.abstains("memory", -9.0, "Ada")
    assert never.abstains("text", -1.1, "Ada") and not never.abstains("adapted+2", -9.0, "Ada")
    assert [reader_name(AskConfig(), f) for f in ("memory", "mixed", "text")] == ["memory", "text", "text"]
    beside = AskConfig(evidence=2)
    assert [reader_name(beside, f) for f in ("memory", "mixed", "text")] == ["memory+2", "mixed+2", "text"]
    adapted = AskConfig(reader="adapter", evidence=0)
    assert [reader_name(adapted, f) for f in ("memory", "mixed")] == ["adapted", "adapted mixed"]
    doubted = Thresholds({"memory": None, "text": None}, None, {"memory": -1.0, "text": None})
    assert doubted.doubts("memory", -1.1, "Ada") and not doubted.doubts("memory", -9.0, NO_ANSWER)
    assert not doubted.doubts("mixed", -9.0, "Ada") and not never.doubts("memory", -9.0, "Ada")


@pytest.mark.parametrize(
    "wrong",
    [
        {"fidelity": "half"},
        {"text_passages": -1},
        {"text_tokens": -1},
        {"text_score": 0.3, "fidelity": "mixed", "search": "lexical"},
    ],
)
def test_settings_out_of_range_are_errors(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong.values()))}"):
        AskConfig(**wrong)
