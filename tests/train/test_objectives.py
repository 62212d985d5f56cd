"""Objectives are entries: a stranger's trains, records and resumes without a line changed elsewhere."""

from __future__ import annotations

import json
import random

import pytest
import torch
import torch.nn.functional as F

from sac_rag.compress.adapter import Card
from sac_rag.errors import ConfigError
from sac_rag.train.batch import answer_loss, scored_logits
from sac_rag.train.data import SUMMARISE, Mixture, Source, TokenisedContext
from sac_rag.train.loop import train
from sac_rag.train.objectives import OBJECTIVES, configured, fields_of
from sac_rag.train.objectives.base import Reads
from sac_rag.train.objectives.texts import Autoencoding, Continuation
from tests.conftest import by_transformers

CARD = Card(base="tiny", base_fingerprint="0", method="sac", ratios=(5.0,))
SAME = {"steps": 3, "step_tokens": 200, "accumulate": 1, "warmup": 0, "first_context": 80, "max_context": 80}
STORY = "It was a dark and stormy night; the rain fell in torrents, and Ada went to Rome by boat. "


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text(STORY * 30)
    return path


class Angle(Reads):
    """Half of the texts are quoted, half continued; the angle between both gradients is recorded."""

    plain = True
    records = ("loss", "cosine")

    def batch(self, contexts, step, rng):
        half = (len(contexts) + 1) // 2
        self.parts = [
            kind(self.config, self.method).batch(part, step, rng)
            for kind, part in ((Autoencoding, contexts[:half]), (Continuation, contexts[half:] or contexts))
        ]
        return self.parts[0]

    def loss(self, batch, step):
        anchor = self.method.parameters()["anchor_embedding"]
        losses = [answer_loss(part, scored_logits(part, self.method))[0] for part in self.parts]
        ways = [torch.autograd.grad(one, anchor, retain_graph=True)[0] for one in losses]
        return sum(losses), {"loss": float(sum(losses).detach()), "cosine": float(F.cosine_similarity(*ways, dim=0))}


def test_an_objective_of_ones_own_trains_records_and_resumes(make_sac, texts, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES._entries, "angle", "tests.train.test_objectives:Angle")
    config, made = configured("angle", **SAME), {}

    def go(folder, stop=None):
        method = make_sac()
        mixed = Mixture([Source(texts, method.backbone.tokens, plain=True)])
        card = train(method, mixed, config, CARD, tmp_path / folder, stop=stop)
        made[folder] = (tmp_path / folder / "adapter.safetensors").read_bytes()
        return card

    go("whole")
    go("broken", stop=iter([False, True]).__next__)
    card = go("broken")
    assert made["whole"] == made["broken"] and card.training["stages"][0]["objective"] == "angle"
    steps = [json.loads(line) for line in (tmp_path / "broken/metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 3 and all(-1 < step["extra"]["cosine"] < 1 and step["loss"] > 0 for step in steps)
    assert len({step["extra"]["cosine"] for step in steps}) == 3


def test_a_text_said_again_costs_what_a_slow_oracle_says(make_sac, texts):
    """Through transformers' own forward, one token at a time, out of the memory of that text alone."""
    method = make_sac(trained=True)
    config = configured("ae", **{**SAME, "ratios": (4.0,), "ratio_weights": (1.0,)})
    objective = OBJECTIVES.load("ae")(config, method)
    ids = method.backbone.tokens(STORY * 2)
    batch = objective.batch([TokenisedContext(ids, ())], 0, random.Random(1))
    assert batch.front == [[0]] and batch.chunks == [ids] and batch.examples == 1
    loss, log = objective.loss(batch, 0)
    memory = method.memory(method.compress([ids], 4.0))
    nats = []
    for row in batch.readings[0]:
        for i in range(row.first, len(row.ids)):
            logits = by_transformers(method.backbone, memory, row.ids[:i])
            nats.append(F.cross_entropy(logits, torch.tensor(row.ids[i])))
    assert loss.item() == pytest.approx(float(torch.stack(nats).mean()), abs=1e-4) == log["loss"]
    assert len(nats) > 40


def test_saying_again_and_going_on_are_one_half_each(make_sac, texts):
    """The mean of the losses of both, behind the memory of a text's first half, and the angle between what each of them
    alone would do to everything that is trained."""
    config = configured("ae+lm", **{**SAME, "ratios": (4.0,), "ratio_weights": (1.0,)}, cosine_every=2)
    ids = make_sac().backbone.tokens(STORY * 4)
    half, ways, alone = len(ids) // 2, [], []
    for recall in (True, False):
        method = make_sac(trained=True)
        objective = OBJECTIVES.load("ae+lm")(config, method)
        batch = objective.batch([TokenisedContext(ids, ())], 0, random.Random(1))
        assert batch.chunks == [ids[:half]] and [row.recall for row in batch.readings[0]] == [False, True, True]
        assert batch.readings[0][0].ids == ids[half:]
        batch.readings[0] = [row for row in batch.readings[0] if row.recall is recall]
        loss, _ = answer_loss(batch, scored_logits(batch, method))
        loss.backward()
        alone.append(float(loss.detach()))
        ways.append(torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                               for p in method.parameters().values()]))  # fmt: skip
    method = make_sac(trained=True)
    objective = OBJECTIVES.load("ae+lm")(config, method)
    batch = objective.batch([TokenisedContext(ids, ())], 0, random.Random(1))
    loss, log = objective.loss(batch, 0)
    loss.backward()
    assert (log["recall"], log["loss"]) == (pytest.approx(alone[0], abs=1e-4), pytest.approx(alone[1], abs=1e-4))
    assert float(loss.detach()) == pytest.approx(sum(alone) / 2, abs=1e-4)
    assert log["cosine"] == pytest.approx(float(F.cosine_similarity(*ways, dim=0)), abs=1e-3)
    both = torch.cat([p.grad.flatten() for p in method.parameters().values()])
    torch.testing.assert_close(both, sum(ways) / 2, atol=1e-5, rtol=1e-3)
    assert "cosine" not in objective.loss(batch, 1)[1] and "cosine" in objective.loss(batch, 2)[1]


def test_summaries_are_asked_for_behind_their_document_alone(make_sac, tmp_path):
    method, path = make_sac(), tmp_path / "s.jsonl"
    rows = [
        {"document": f"Lamp {i} burned oil in Oslo.", "items": [{"query": query, "summary": f"Lamp {i} burned."}]}
        for i, query in enumerate((None, "What of the lamp?") * 4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    objective = OBJECTIVES.load("summarise")(configured("summarise", **SAME), method)
    batch = objective.draw(Mixture([Source(path, method.backbone.tokens)]), 2, 0)
    decode, heads = method.backbone.tokenizer.decode, set()
    assert batch.front == [[i] for i in range(len(batch.front))] and len(batch.front) > 1
    for (row,), chunk in zip(batch.readings, batch.chunks, strict=True):
        assert decode(row.ids[row.first :]) == f"{' '.join(decode(chunk).split()[:3])}.{method.layout.end}"
        heads.add(decode(row.ids[: row.first]))
    assert any(SUMMARISE in head for head in heads) and any("What of the lamp?" in head for head in heads)


def test_each_objective_reads_what_is_its_own_and_refuses_the_rest():
    assert "recall_weight" in fields_of("budget") and "recall_weight" not in fields_of("lm")
    assert set(fields_of("salience")) < set(fields_of("lm")) == set(fields_of("ae")) < set(fields_of("qa"))
    assert configured("summarise").own.recall_weight == 0.0 != configured().own.recall_weight
    with pytest.raises(ConfigError, match="objective lm reads no setting 'recall_weight'; it has objective, steps, "):
        configured("lm", recall_weight=0.1)
    with pytest.raises(ConfigError, match=r"unknown objective 'q'\. Did you mean 'qa'\?"):
        configured("q")
    config = configured("budget", future_from=-8.0, future_steps=2, steps=1)
    assert [config.own.future(step) for step in (0, 5)] == [-8.0, -8.0], "the encoder does not learn, so it stays"
    changed = config.changed(recall_weight=0.5, seed=3)
    assert changed == configured(**{**config.flat(), "recall_weight": 0.5, "seed": 3}) != config
