"""Questions that compare: what the rules read, and that each answer follows from the paragraphs."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/comparisons.py"
_spec = importlib.util.spec_from_file_location("comparisons", SCRIPT)
assert _spec and _spec.loader
comparisons = importlib.util.module_from_spec(_spec)
sys.modules["comparisons"] = comparisons
_spec.loader.exec_module(comparisons)
Paragraph = comparisons.Paragraph

PEOPLE = [
    ("Ada Boom", "Ada Boom (3 May 1901 \u2013 9 June 1970) was a Dutch painter."),
    ("Bert Cole", "Bert Cole (born July 12, 1950) is an American film director."),
    ("Cleo Dahl", "Cleo M. Dahl (Oslo, January 1880 \u2013 March 2, 1911) was a Norwegian film director and actress."),
    ("Dora Egg", "Dora Egg (1 March 1899 - 4 April 1990) was a former Dutch rower."),
]
FILMS = [
    ("Long Way", "Long Way is a 1979 American drama film directed by Bert Cole and starring nobody."),
    ("Short Way", "Short Way is a 1909 Norwegian silent film. It was directed by Cleo Dahl."),
    ("No Way", "No Way is a 1930 American film."),
    ("Low Way", "Low Way is a 1999 album by nobody."),
]


def test_facts_are_read_from_the_first_words():
    ada, bert, cleo, dora = (Paragraph.of(*p) for p in PEOPLE)
    assert (ada.born, ada.died, ada.nation) == ((1901, 5, 3), (1970, 6, 9), frozenset({"Dutch"}))
    assert (bert.born, bert.died, bert.born_as) == ((1950, 7, 12), None, "July 12, 1950")
    assert (cleo.born, cleo.died_as, cleo.nation) == ((1880, 1, 0), "March 2, 1911", frozenset({"Norwegian"}))
    assert dora.died == (1990, 4, 4) and dora.nation == frozenset({"Dutch"})
    long, short, no, low = (Paragraph.of(*p) for p in FILMS)
    assert (long.year, long.kind, long.director, long.nation) == (1979, "film", "Bert Cole", frozenset({"American"}))
    assert (short.director, no.director, low.kind, low.born) == ("Cleo Dahl", "", "album", None)
    assert Paragraph.of("Mud", "Mud is wet. It was first seen (in May 1900) by many.").nation == frozenset()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparisons")
    held = ("Held Out", "Held Out (born May 5, 1905) was a French thief.")
    for name, parts in (("a", [*PEOPLE, *FILMS, held]), ("b", [held])):
        text = "\n\n".join(f"{title}\n{body}" for title, body in parts)
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as handle:
            handle.write(json.dumps({"context": text, "qas": []}))
    made = []
    for name in ("x", "y"):
        command = [sys.executable, str(SCRIPT), str(folder / "a.jsonl.gz"), "--not-in", str(folder / "b.jsonl.gz")]
        subprocess.run([*command, "--contexts", "400", "--output", str(folder / name)], check=True, capture_output=True)
        made.append((folder / name).read_bytes())
    assert made[0] == made[1], "the same seed makes the same file"
    return [json.loads(line) for line in gzip.decompress(made[0]).splitlines()]


def asked(rows, pattern):
    """(groups, answer) of all questions that fit a pattern."""
    found = [(re.fullmatch(pattern, qa["question"]), qa["answers"][0]) for row in rows for qa in row["qas"]]
    found = [(match.groups(), answer) for match, answer in found if match]
    assert found, pattern
    return found


BORN = {"Ada Boom": 1901, "Bert Cole": 1950, "Cleo Dahl": 1880, "Dora Egg": 1899}
DIED = {"Ada Boom": 1970, "Cleo Dahl": 1911, "Dora Egg": 1990}
MADE = {"Long Way": 1979, "Short Way": 1909, "No Way": 1930}
DIRECTED = {"Long Way": "Bert Cole", "Short Way": "Cleo Dahl"}
PAIR = r"(.+) or (.+)\?"


@pytest.mark.parametrize(
    ("pattern", "facts", "late"),
    [
        (rf"Who was born (?:first|earlier), {PAIR}", BORN, False), (rf"Who was born later, {PAIR}", BORN, True),
        (rf"Who is older, {PAIR}", BORN, False), (rf"Who is younger, {PAIR}", BORN, True),
        (r"Was (.+) or (.+) born first\?", BORN, False),
        (rf"Who died (?:first|earlier), {PAIR}", DIED, False), (rf"Who died later, {PAIR}", DIED, True),
        (rf"Which film (?:was released|came out) (?:first|earlier), {PAIR}", MADE, False),
        (rf"Which film (?:was released|came out) (?:later|more recently), {PAIR}", MADE, True),
        (rf"Which film has the director who (?:was born (?:first|earlier)|is older), {PAIR}",
         {film: BORN[who] for film, who in DIRECTED.items()}, False),
        (rf"Which film has the director who (?:was born later|is younger), {PAIR}",
         {film: BORN[who] for film, who in DIRECTED.items()}, True),
        (rf"Who lived longer, {PAIR}", {who: DIED[who] - BORN[who] for who in DIED}, True),
    ],
)  # fmt: skip
def test_the_answer_to_a_comparison_is_right(rows, pattern, facts, late):
    for pair, answer in asked(rows, pattern):
        assert answer == sorted(pair, key=facts.__getitem__)[late]


def test_yes_and_no_are_right(rows):
    nations = {"Ada Boom": "Dutch", "Bert Cole": "American", "Cleo Dahl": "Norwegian", "Dora Egg": "Dutch",
               "Long Way": "American", "Short Way": "Norwegian", "No Way": "American"}  # fmt: skip
    for (a, b), answer in asked(rows, r"(?:Do|Were|Are|Did) (?!the|both)(.+) and (.+?) (?:have|of|both|originate).+"):
        assert answer == ("yes" if nations[a] == nations[b] else "no")
    for (a, b), answer in asked(rows, r"Do the directors of the films (.+) and (.+) have the same nationality\?"):
        assert answer == "no" and {a, b} == set(DIRECTED)


def test_every_context_holds_what_its_questions_need(rows):
    assert not any("Held Out" in row["context"] for row in rows)
    for row in rows:
        titles = [part.partition("\n")[0] for part in row["context"].split("\n\n")]
        assert len(titles) == len(set(titles)) and 1 <= len(row["qas"]) <= 6
        for qa in row["qas"]:
            named = [t for t in (*BORN, *MADE, "Low Way") if t in qa["question"]]
            assert named and set(named) <= set(titles)
            if "director" in qa["question"]:
                assert {DIRECTED[film] for film in named if film in DIRECTED} <= set(titles) or "Who" in qa["question"]
