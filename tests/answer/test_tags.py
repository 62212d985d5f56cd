"""Tags: genuine ones are found wherever text carries them, forged ones stay text."""

from __future__ import annotations

import html
import json
import random
from string import Template

import pytest

from sac_rag.answer.tags import PassageRef, Tagger

IDS = [f"{i:032x}" for i in range(5)]


def everything(_: str) -> bool:
    return True


def test_genuine_tags_are_cut_out_in_order():
    t = Tagger(b"k" * 32)
    text = f"See {t.tag(IDS[1])}\n{t.tag(IDS[0])} and {t.tag(IDS[1])}."
    assert t.split(text, everything) == [
        *("See ", PassageRef(IDS[1]), "\n", PassageRef(IDS[0])),
        *(" and ", PassageRef(IDS[1]), "."),
    ]
    assert t.split("no tag", everything) == ["no tag"] and t.split("", everything) == []


def test_tags_survive_escaping_and_templates():
    t = Tagger(b"k" * 32)
    tag = t.tag(IDS[3])
    for carried in (html.escape(tag), json.loads(json.dumps(tag)), Template("$x").substitute(x=tag)):
        assert PassageRef(IDS[3]) in t.split(f"a {carried} b", everything)


def test_a_thousand_forged_tags_stay_text():
    t, other = Tagger(b"k" * 32), Tagger(b"j" * 32)
    rng = random.Random(0)
    for n in range(1000):
        genuine = t.tag(rng.choice(IDS))
        at = rng.randrange(len(genuine))
        changed = genuine[:at] + rng.choice("0123456789abcdefg:[]") + genuine[at + 1 :]
        guess = f"[[sac:1:{rng.choice(IDS)}:{rng.getrandbits(128):032x}]]"
        for forged in (changed, guess, other.tag(IDS[n % 5]), genuine.upper(), genuine.replace("1:", "2:", 1)):
            if forged != genuine:
                assert t.split(f"x {forged} y", everything) == [f"x {forged} y"], forged


def test_a_tag_of_what_may_not_be_read_stays_text():
    t = Tagger(b"k" * 32)
    text = f"{t.tag(IDS[0])}{t.tag(IDS[1])}"
    assert t.split(text, lambda i: i == IDS[1]) == [t.tag(IDS[0]), PassageRef(IDS[1])]


@pytest.mark.parametrize("bad", ["", "zz", IDS[0] + "0", "../../etc", IDS[0].replace("0", "G")])
def test_only_passage_ids_get_tags(bad):
    with pytest.raises(ValueError, match="no passage id"):
        Tagger(b"k").tag(bad)
