"""The prior over ranks: what is added to attention scores does what the formula says, everywhere alike."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from sac_rag.compress.anchor_kv import Memory
from sac_rag.compress.backbone import Backbone, LoraSpec, Reading
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.sac import Sac
from sac_rag.compress.placing import Placing
from sac_rag.compress.session import Session
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.families import FAMILIES
from tests.conftest import byte_tokenizer, tiny_model
from tests.laws.test_memory_laws import ids

QUESTION = ids(9, seed=9)
NEXT = [5, 17, 40]


@pytest.fixture
def case(make_sac):
    method = make_sac(trained=True)
    kvs = method.compress([ids(n, seed=n).tolist() for n in (60, 33, 21)], 5.0)
    return method, [[kv] for kv in kvs]


def doubled(memory: Memory, bias: float) -> Memory:
    """Every slot twice, each with `bias`."""
    twice = {"keys": memory.keys.repeat_interleave(2, 0), "values": memory.values.repeat_interleave(2, 0)}
    biases = torch.full((len(twice["keys"]),), bias)
    return dataclasses.replace(memory, **twice, counts=2 * memory.counts, bias=biases)


def logits_of(method, memory, grad=False):
    """By the packed forward, of every token of the question."""
    with torch.set_grad_enabled(grad):
        memory = dataclasses.replace(memory, keys=memory.keys.detach().requires_grad_(grad))
        return method.backbone.read([memory], [Reading(QUESTION, torch.arange(len(QUESTION)), 0)]).detach()


def stepped(session: Session) -> list[torch.Tensor]:
    """Next logits of the last row behind the prompt and each further token."""
    out = [session.logits[-1]]
    for token in NEXT:
        out.append(session.step(torch.full((session.rows,), token))[-1])
    return out


@pytest.mark.parametrize("grad", [False, True])
def test_two_slots_held_back_by_ln_2_weigh_what_one_does(case, grad):
    method, passages = case
    memory = method.passages(passages)
    want = logits_of(method, memory, grad)
    assert torch.allclose(logits_of(method, doubled(memory, -math.log(2)), grad), want, atol=1e-5)
    assert not torch.allclose(logits_of(method, doubled(memory, 0.0), grad), want, atol=1e-3), "the slots do matter"


def test_a_session_holds_slots_back_as_the_packed_forward_does(case):
    method, passages = case
    memory = method.passages(passages)
    with torch.inference_mode():
        plain = Session(method.backbone, [[memory, QUESTION.tolist()]])
        held = Session(method.backbone, [[doubled(memory, -math.log(2)), QUESTION.tolist()]])
        for got, want in zip(stepped(held), stepped(plain), strict=True):
            assert torch.allclose(got, want, atol=1e-5)


def test_prior_holds_back_by_rank(case):
    """Each rank has its own bias, in either order, in the packed forward and in a session."""
    method, passages = case
    plain = method.passages(passages, placing=Placing(prior=0.0))
    assert plain.bias is None, "no prior leaves every bit as it is"
    for order, ranks in (("best-last", (2, 1, 0)), ("best-first", (0, 1, 2))):
        memory = method.passages(passages, placing=Placing(order=order, prior=0.7))
        parts = [method.prefix, *(passages[r][0] for r in ranks)]
        biases = [0.0, *(-0.7 * r for r in ranks)]
        counts = torch.stack([kv.counts.flatten() for kv in parts], 1).flatten()
        want = torch.tensor(biases).repeat(memory.counts.numel()).repeat_interleave(counts)
        assert torch.allclose(memory.bias, want)
        with torch.inference_mode():
            got = Session(method.backbone, [[memory, QUESTION.tolist()]]).logits[0]
        assert torch.allclose(got, logits_of(method, memory)[-1], atol=1e-5)


def test_infinitely_held_back_is_not_there(case):
    """What is far down adds nothing: only positions remain of it."""
    method, passages = case
    alone = method.memory(passages[0], start=sum(kv.source_len for (kv,) in passages[1:]), opens=False)
    memory = method.passages(passages, placing=Placing(prior=60.0), opens=False)
    assert alone.next_position == memory.next_position
    assert torch.allclose(logits_of(method, memory), logits_of(method, alone), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_company_and_history_change_nothing(family):
    """A biased row beside plain ones, joined late, taken out, or read again after a rewind: not close, but equal, in
    bf16 and packed, which is how a CPU answers."""
    backbone = Backbone(tiny_model(family, hidden_size=256).bfloat16(), byte_tokenizer(), LoraSpec(rank=4))
    backbone.pack()
    method = Sac(backbone, PromptLayout(prefix="<|im_start|>sys\n"))
    passages = [[kv] for kv in method.compress([ids(n, seed=n).tolist() for n in (60, 33, 21)], 5.0)]
    placing = Placing(prior=0.7)
    memory, plain = method.passages(passages, placing=placing), method.passages(passages[:2])
    prompt, other = [memory, QUESTION.tolist()], [plain, ids(30, seed=3).tolist()]
    with torch.inference_mode():
        want = stepped(Session(method.backbone, [prompt]))
        plainly = stepped(Session(method.backbone, [other]))
        both = Session(method.backbone, [other, prompt])
        assert all(map(torch.equal, stepped(both), want))
        joined = Session(method.backbone, [other])
        joined.join(Session(method.backbone, [prompt]))
        assert all(map(torch.equal, stepped(joined), want))
        turned = Session(method.backbone, [prompt])
        turned.join(Session(method.backbone, [other]))
        assert all(map(torch.equal, stepped(turned), plainly))
        taken = Session(method.backbone, [prompt, other])
        taken.keep([1, 0])
        assert all(map(torch.equal, stepped(taken.row(1)), want))
        again = Session(method.backbone, [prompt])
        stepped(again)
        again.rewind([0])
        again.read([other])
        assert all(map(torch.equal, stepped(again), plainly)), "nothing of what stood there is left"


def test_policies_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="order is 'worst'"):
        Placing(order="worst")
    for prior in (-0.1, math.inf, math.nan, "0.5"):
        with pytest.raises(ConfigError, match="prior is"):
            Placing(prior=prior)
    with pytest.raises(AdapterError, match="unknown fields"):
        Placing.from_mapping({"priors": 1})
    with pytest.raises(AdapterError, match="cannot be used"):
        Placing.from_mapping({"prior": [1]})
    assert Placing.from_mapping(Placing(prior=0.5).to_mapping()) == Placing(prior=0.5)
