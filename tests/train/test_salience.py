"""Fitting the selector: what is asked for is found in the text, learned, and kept apart from all else."""

from __future__ import annotations

import json
import random

import pytest
import torch

from sac_rag.compress.adapter import Card
from sac_rag.errors import ConfigError, TrainingError
from sac_rag.train.data import Mixture, Source, TokenisedContext
from sac_rag.train.loop import train
from sac_rag.train.objectives import configured
from sac_rag.train.salience import places_of, salience_batch, salience_loss, with_answers

CARD = Card(base="tiny", base_fingerprint="0", method="sac", ratios=(5.0,), options={"selector": "salient"})
CONFIG = configured(
    objective="salience", steps=60, step_tokens=400, accumulate=1, learning_rate=2e-2, warmup=1, first_context=80,
    max_context=80,
)  # fmt: skip


@pytest.fixture
def years(tmp_path):
    """Texts whose questions ask for their number alone."""
    rng = random.Random(0)
    rows = []
    for i in range(60):
        year = str(rng.randrange(1000, 9999))
        text = f"{rng.choice(['Long ago', 'As they say', 'Then'])} in {year} the boat sailed home again."
        rows.append({"context": text, "qas": [{"qid": f"{i}", "question": "When?", "answers": [year]}]})
    path = tmp_path / "years.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_the_selector_learns_what_is_asked_for_and_nothing_else_changes(make_sac, years, tmp_path):
    method = make_sac(selector="salient")
    before = {n: p.detach().clone() for n, p in method.parameters().items()}
    train(method, Mixture([Source(years, method.backbone.tokens)]), CONFIG, CARD, tmp_path / "out")
    for name, parameter in method.parameters().items():
        assert torch.equal(parameter, before[name]) != name.startswith("selector."), name
    text = "As they say in 4711 the boat sailed home again."
    scores = method.selector.scores(method.backbone.tokens(text)).tolist()
    asked = range(text.index(" 4711"), text.index(" 4711") + 5)
    others = [score for i, score in enumerate(scores) if i not in asked]
    assert min(scores[i] for i in asked) > 0 > max(others)


def test_questions_do_not_move_the_selector(make_sac, years, tmp_path):
    method = make_sac(selector="salient")
    torch.nn.init.normal_(method.selector.token, generator=torch.Generator().manual_seed(1))
    before = {n: p.detach().clone() for n, p in method.parameters().items()}
    config = configured(steps=2, step_tokens=200, first_context=80, max_context=80, warmup=0, weight_decay=0.1)
    train(method, Mixture([Source(years, method.backbone.tokens)]), config, CARD, tmp_path / "out")
    moved = {n for n, p in method.parameters().items() if not torch.equal(p, before[n])}
    assert moved and not any(n.startswith("selector.") for n in moved)


def test_a_stopped_fit_goes_on_bit_for_bit(make_sac, years, tmp_path):
    whole, broken = make_sac(selector="salient"), make_sac(selector="salient")
    broken.selector.load_state_dict(whole.selector.state_dict())
    train(whole, Mixture([Source(years, whole.backbone.tokens)]), CONFIG, CARD, tmp_path / "whole")
    seen: list[int] = []
    for stop_at in (20, 60):
        data = Mixture([Source(years, broken.backbone.tokens)])
        done = train(
            broken, data, CONFIG, CARD, tmp_path / "broken",
            listen=lambda p: seen.append(p.step), stop=lambda n=stop_at: seen[-1] >= n,
        )  # fmt: skip
    assert seen == list(range(1, 61)) and done.training["stages"][-1]["steps_done"] == 60
    for a, b in zip(whole.selector.parameters(), broken.selector.parameters(), strict=True):
        assert torch.equal(a, b)


def test_answers_are_found_where_they_stand(make_sac):
    backbone = make_sac().backbone
    text = "Ada met Bo. Bo met Cy, and Bo met Ada."
    ids, tokens = backbone.tokens(text), backbone.tokens
    assert places_of(tokens("Cy"), ids, backbone) == [text.index(" Cy"), *range(text.index("Cy"), text.index("Cy") + 2)]
    assert places_of(tokens("Ada"), ids, backbone)[0] == text.rindex(" Ada")  # within a sentence rather than in front
    assert places_of(tokens("Bo"), ids, backbone) == []  # three times
    assert places_of(tokens("Di"), ids, backbone) == []
    assert places_of(tokens(text[:13]), ids, backbone) == []  # too long
    assert places_of([], ids, backbone) == []


def test_the_loss_is_cross_entropy_over_all_tokens(make_sac):
    method = make_sac(selector="salient")
    tokens = method.backbone.tokens
    contexts = [
        TokenisedContext(tokens("Ada went to Rome."), ((tokens("Who?"), tokens("Ada")),)),
        TokenisedContext(tokens("Nobody knows."), ((tokens("Who?"), tokens("Ada")),)),
    ]
    batch = salience_batch(contexts, method)
    assert batch.asked == [[0, 1, 2], []] and batch.examples == 2
    with torch.no_grad():
        method.selector.token[tokens("A")[0]] = 2.0
    loss, log = salience_loss(batch, method)
    p = torch.tensor([2.0] + [0.0] * 29).sigmoid()
    want = -torch.cat((p[:3].log(), (1 - p[3:]).log())).mean()
    assert log["loss"] == pytest.approx(float(want), abs=1e-6) and loss.requires_grad


def test_texts_without_their_answers_are_passed_over(make_sac, years, tmp_path):
    backbone = make_sac().backbone
    good, bad = TokenisedContext([7, 8], (([9], [8]),)), TokenisedContext([7, 8], (([9], [5]),))
    assert with_answers(iter([bad, bad, good]).__next__, backbone) is good
    with pytest.raises(TrainingError, match="no answer stands in the last 500 texts"):
        with_answers(lambda: bad, backbone)


def test_a_method_without_a_fitted_selector_is_refused(make_sac, years, tmp_path):
    method = make_sac()
    with pytest.raises(ConfigError, match="--option selector=salient"):
        train(method, Mixture([Source(years, method.backbone.tokens)]), CONFIG, CARD, tmp_path / "out")
