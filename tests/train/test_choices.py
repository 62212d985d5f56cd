"""Questions that offer two answers, and texts that are most alike."""

from __future__ import annotations

import json
import random

import pytest

from sac_rag.train.choices import kind_of_answer, offered
from sac_rag.train.data import CHOICE, Mixture, Source
from sac_rag.train.neighbours import MOST, Neighbours

TEXT = (
    "The mill of Ada Carver opened in 1901 near the old harbour bridge. In 1887 a fire had burnt the first one, and "
    "Bert Dolan lost 40 people there. The town paid 300 dollars for a new wheel on 4 May 1899."
)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("1901", "year"), ("in 1901", "year"), ("40 people", "number"), ("Ada Carver", "name"), ("4 May 1899", "date"),
     ("a new wheel", "phrase"), ("Bert", "name"), ("burnt down", "phrase")],
)  # fmt: skip
def test_kinds_of_answers(answer, kind):
    assert kind_of_answer(answer) == kind


@pytest.mark.parametrize(
    ("question", "answer", "others"),
    [
        ("When did the mill open?", "1901", {"1887"}),
        ("Who owned it?", "Ada Carver", {"Bert Dolan"}),
        ("How many were lost?", "40 people", {"300"}),
    ],
)
def test_another_span_of_the_same_kind_is_offered(question, answer, others):
    rng = random.Random(0)
    asked = [offered(TEXT, [(question, answer)], rng)[0] for _ in range(200)]
    assert {a for _, a in asked} == {answer}
    choices = [q for q, _ in asked if q != question]
    assert 70 < len(choices) < 130, "about half of them"
    start = question.rstrip("?")
    pairs = [q.removeprefix(start).lstrip(",: ").rstrip("?").split(" or ") for q in choices]
    assert {b for pair in pairs for b in pair} == {answer, *others}
    assert 0.3 < sum(pair[0] == answer for pair in pairs) / len(pairs) < 0.7, "in either order"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Did it burn?", "yes"),
        ("Was it 1901 or 1887?", "1901"),
        ("Why?", "because the wheel had been burnt by a fire in the town"),
        ("On what day?", "4 May 1899"),  # there is no other date
    ],
)
def test_what_offers_nothing_stays(question, answer):
    assert {offered(TEXT, [(question, answer)], random.Random(seed))[0] for seed in range(20)} == {(question, answer)}


def test_a_source_offers_others_in_each_epoch_and_repeats_by_its_seed(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"context": TEXT, "qas": [{"question": "When did it open?", "answers": ["1901"]}]}
    path.write_text(json.dumps(row))

    def drawn(seed):
        source = Source(path, lambda text: list(text.encode()), seed=seed, kind=CHOICE)
        return [bytes(source.draw(500).pairs[0][0]).decode() for _ in range(30)]

    assert len(set(drawn(0))) > 2 and drawn(0) == drawn(0) and drawn(0) != drawn(1)


CLUSTERS = [f"{subject} number {subject[2]}{n}." for subject in ("The mill wheel", "A cold harbour", "Blue trains run")
            for n in range(4)]  # fmt: skip


def test_neighbours_are_of_one_subject_and_no_copies():
    near = Neighbours([*CLUSTERS, CLUSTERS[0]])
    for index in range(12):
        found = near.of(index)[:3]
        assert {i // 4 for i in found} == {index // 4} and index not in found
    assert 0 not in near.of(12) and len(near.of(0)) <= MOST


def test_clusters_bring_neighbours_with_their_own_questions(tmp_path):
    path = tmp_path / "b.jsonl"
    rows = [{"context": t, "qas": [{"question": f"What is {i}?", "answers": ["it"]}]} for i, t in enumerate(CLUSTERS)]
    path.write_text("\n".join(map(json.dumps, rows)))

    def mixture():
        return Mixture([Source(path, lambda text: list(text.encode()))], seed=4)

    several, alone = mixture(), mixture()
    for _ in range(20):
        cluster, (one,) = several.cluster(500, 3), alone.cluster(500, 1)
        assert cluster[0].ids == one.ids and one.cluster == 0, "what is drawn does not depend on what it brings"
        assert len(cluster) == 3 and len({c.cluster for c in cluster}) == 1 and cluster[0].cluster > 0
        subjects = {bytes(c.ids).decode().split(" number")[0] for c in cluster}
        asked = {bytes(c.pairs[0][0]).decode() for c in cluster}
        assert len(subjects) == 1 and len(asked) == 3
    assert {c.cluster for c in several.cluster(500, 2)} == {21}
    short = mixture().cluster(max(map(len, CLUSTERS[8:])), 12)
    assert all(len(c.ids) <= max(map(len, CLUSTERS[8:])) for c in short)
