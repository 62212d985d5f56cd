"""Questions that compare, made by rules out of titled paragraphs (Wikipedia's first ones, as in HotpotQA).

    python scripts/comparisons.py DIR/qa/hotpotqa.train.jsonl.gz DIR/qa/2wikimultihopqa.train.jsonl.gz \\
        --not-in DIR/qa/hotpotqa.test.jsonl.gz --not-in DIR/qa/2wikimultihopqa.test.jsonl.gz \\
        --output DIR/qa/comparisons.train.jsonl.gz

Birth, death, release, nationality and director are read from a paragraph's first words; two or more paragraphs with
such a fact make a context with others of their kind, and its questions: which of two came first, whether two share a
country, when a film's director was born. A question has one right answer by what the paragraphs say. Paragraphs that
stand in a file of --not-in are left out. Prints what was found; the same seed makes the same file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

MONTHS = "January February March April May June July August September October November December".split()
DATE = rf"(?:\d{{1,2}}\s)?(?:{'|'.join(MONTHS)})\s(?:\d{{1,2}},?\s)?\d{{4}}"
BORN = re.compile(rf"\([^()]*?({DATE})")
DIED = re.compile(rf"\([^()]*?{DATE}\s?[\u2013-]\s?({DATE})")
WORK = re.compile(r"\bis an? (\d{4}) ((?:[\w-]+ ){0,6}?)(film|album|song|novel|video game|single)\b")
DIRECTOR = re.compile(r"directed by ([A-Z][\w.'-]+(?: [A-Z][\w.'-]+){1,3})")
NATIONS = frozenset(
    "American British English Scottish Welsh Irish French German Italian Spanish Portuguese Dutch Belgian Swiss "
    "Austrian Swedish Norwegian Danish Finnish Icelandic Polish Czech Slovak Hungarian Romanian Bulgarian Greek "
    "Turkish Russian Soviet Ukrainian Serbian Croatian Slovenian Bosnian Albanian Estonian Latvian Lithuanian Georgian "
    "Armenian "
    "Israeli Iranian Iraqi Egyptian Indian Pakistani Bangladeshi Chinese Japanese Korean Taiwanese Vietnamese Thai "
    "Indonesian Malaysian Filipino Australian Canadian Mexican Brazilian Argentine Chilean Colombian Peruvian "
    "Venezuelan Cuban Nigerian Kenyan Ghanaian Ethiopian Moroccan Algerian Tunisian".split()
)
NATION = re.compile(r"\b(?:is|was) an? (?:[a-z0-9-]+ ){0,3}?((?:[A-Z][\w]+[ -]?){1,3})")
EARLIER = ("first", "earlier")
LATER = ("later", "more recently")


@dataclass(frozen=True)
class Paragraph:
    """A title, its text, and the facts that its first words state."""

    title: str
    text: str
    born: tuple[int, int, int] | None = None
    died: tuple[int, int, int] | None = None
    born_as: str = ""
    died_as: str = ""
    nation: frozenset[str] = field(default_factory=frozenset)
    year: int | None = None
    kind: str = ""
    director: str = ""

    @classmethod
    def of(cls, title: str, text: str) -> Paragraph:
        head = text[:300]
        born, died, work, directed = BORN.search(head), DIED.search(head), WORK.search(head), DIRECTOR.search(text)
        found = NATION.search(head)
        nations = frozenset(w for w in re.findall(r"\w+", found.group(1) if found else "") if w in NATIONS)
        if work:
            nations = frozenset(w for w in re.findall(r"\w+", work.group(2)) if w in NATIONS)
        person = bool(born) and not work
        return cls(
            title,
            text,
            _date(born.group(1)) if born and person else None,
            _date(died.group(1)) if died and person else None,
            born.group(1) if born and person else "",
            died.group(1) if died and person else "",
            nations,
            int(work.group(1)) if work else None,
            work.group(3) if work else "",
            directed.group(1).rstrip(".") if directed and work and work.group(3) == "film" else "",
        )


def _date(text: str) -> tuple[int, int, int]:
    """Year, month, day; 0 where it says none."""
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    month = next(i for i, name in enumerate(MONTHS, 1) if name in text)
    return numbers[-1], month, numbers[0] if len(numbers) > 1 else 0


def paragraphs(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Titled paragraphs of the contexts of question files, each once."""
    seen = set()
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as handle:
            for line in handle:
                for part in json.loads(line).get("context", "").split("\n\n"):
                    title, _, text = part.partition("\n")
                    if text.strip() and len(title) < 100 and (title, text) not in seen:
                        seen.add((title, text))
                        yield title.strip(), text.strip()


def either(rng: random.Random, a: str, b: str) -> str:
    """Two names in either order."""
    return f"{a} or {b}" if rng.random() < 0.5 else f"{b} or {a}"


def both(rng: random.Random, a: str, b: str) -> str:
    return f"{a} and {b}" if rng.random() < 0.5 else f"{b} and {a}"


def which(rng: random.Random, a: Paragraph, b: Paragraph, people: dict[str, Paragraph]) -> Iterator[tuple[str, str]]:
    """Questions on two paragraphs, each with its answer: of every sort that their facts allow one."""
    ways = (EARLIER, LATER)
    if a.born and b.born and a.born[0] != b.born[0]:
        first, last = (a, b) if a.born < b.born else (b, a)
        late = rng.random() < 0.5
        asked = [f"Who was born {'later' if late else rng.choice(EARLIER)}", f"Who is {('older', 'younger')[late]}"]
        pair = either(rng, a.title, b.title)
        named = [f"{text}, {pair}?" for text in asked] + ([] if late else [f"Was {pair} born first?"])
        yield rng.choice(named), (last if late else first).title
    if a.died and b.died and a.died[0] != b.died[0]:
        first, last = (a, b) if a.died < b.died else (b, a)
        late = rng.random() < 0.5
        yield f"Who died {'later' if late else rng.choice(EARLIER)}, {either(rng, a.title, b.title)}?", (
            last if late else first
        ).title
        lived = [p.died[0] - p.born[0] for p in (a, b)] if a.born and b.born else [0, 0]  # type: ignore[index]
        if abs(lived[0] - lived[1]) > 1 and rng.random() < 0.5:
            yield f"Who lived longer, {either(rng, a.title, b.title)}?", (a if lived[0] > lived[1] else b).title
    if a.year and b.year and a.kind == b.kind and a.year != b.year:
        late = rng.random() < 0.5
        verb = rng.choice(("was released", "came out"))
        yield f"Which {a.kind} {verb} {rng.choice(ways[late])}, {either(rng, a.title, b.title)}?", (
            a if (a.year > b.year) == late else b
        ).title
    if a.nation and b.nation and bool(a.year) == bool(b.year):
        same = "yes" if a.nation == b.nation else "no" if not a.nation & b.nation else ""
        pair = both(rng, a.title, b.title)
        people_ways = (f"Do {pair} have the same nationality?", f"Were {pair} of the same nationality?")
        work_ways = (
            f"Did {pair} originate from the same country?",
            f"Are both {a.kind}s, {pair}, from the same country?",
        )
        if same and (same == "yes" or rng.random() < 0.35):
            yield rng.choice((f"Are {pair} both from the same country?", *(work_ways if a.year else people_ways))), same
    one, two = people.get(a.director), people.get(b.director)
    if one and two and one is not two:
        pair = either(rng, a.title, b.title)
        if one.born and two.born and one.born[0] != two.born[0]:
            late = rng.random() < 0.5
            born = f"was born {'later' if late else rng.choice(EARLIER)}"
            who = rng.choice((born, f"is {('older', 'younger')[late]}"))
            answer = a if (one.born > two.born) == late else b
            yield f"Which film has the director who {who}, {pair}?", answer.title
        if one.died and two.died and one.died[0] != two.died[0]:
            late = rng.random() < 0.5
            answer = a if (one.died > two.died) == late else b
            when = "later" if late else rng.choice(EARLIER)
            yield f"Which film has the director who died {when}, {pair}?", answer.title
        if one.nation and two.nation:
            same = "yes" if one.nation == two.nation else "no" if not one.nation & two.nation else ""
            pair = both(rng, a.title, b.title)
            if same and (same == "yes" or rng.random() < 0.35):
                ways_asked = (
                    f"Do the directors of the films {pair} have the same nationality?",
                    f"Are the directors of {pair} from the same country?",
                )
                yield rng.choice(ways_asked), same


def single(rng: random.Random, p: Paragraph, people: dict[str, Paragraph]) -> Iterator[tuple[str, str]]:
    """Questions on one paragraph, or on a film and its director's."""
    if p.director:
        yield rng.choice((f"Who directed {p.title}?", f"Who is the director of film {p.title}?")), p.director
        if (d := people.get(p.director)) is not None:
            if d.born_as:
                yield f"When was the director of film {p.title} born?", d.born_as
            if d.died_as:
                yield f"When did the director of film {p.title} die?", d.died_as
    if p.born_as and rng.random() < 0.3:
        yield f"When was {p.title} born?", p.born_as
    if p.died_as and rng.random() < 0.3:
        yield f"When did {p.title} die?", p.died_as


def context(rng: random.Random, groups: dict[str, list[Paragraph]], everything: list[Paragraph]) -> dict[str, object]:
    """A few paragraphs of one kind (films with their directors' where there are such), others, and up to six
    questions."""
    theme = rng.choices(("person", "film", "directed", "work"), (0.35, 0.2, 0.35, 0.1))[0]
    chosen = rng.sample(groups[theme], min(len(groups[theme]), rng.randint(2, 4)))
    people = {p.title: p for p in groups["person"]}
    named = [people[p.director] for p in chosen if theme == "directed"]
    others = [p for p in rng.sample(everything, rng.randint(0, 5)) if p not in chosen and p not in named]
    asked: list[tuple[str, str]] = []
    for i, a in enumerate(chosen):
        asked += single(rng, a, people if theme == "directed" else {})
        for b in chosen[i + 1 :]:
            asked += which(rng, a, b, people if theme == "directed" else {})
    ways = [pair for pair in asked if " or " in pair[0] or pair[1] in ("yes", "no")]
    rest = [pair for pair in asked if pair not in ways]
    rng.shuffle(ways)
    rng.shuffle(rest)
    texts = list(dict.fromkeys((p.title, p.text) for p in (*chosen, *named, *others)))
    rng.shuffle(texts)
    return {
        "context": "\n\n".join(f"{title}\n{text}" for title, text in texts),
        "qas": [{"question": q, "answers": [a]} for q, a in [*ways[:5], *rest[: max(1, 5 - len(ways))]]],
        "source": "comparisons",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--not-in", action="append", default=[], type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--contexts", type=int, default=6000)
    parser.add_argument("--longest", type=int, default=1500, help="longest paragraph, in characters")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    held_out = {text for _, text in paragraphs(given.not_in)}
    found = [Paragraph.of(*p) for p in paragraphs(given.files) if p[1] not in held_out and len(p[1]) <= given.longest]
    people = {p.title: p for p in found if p.born}
    groups = {
        "person": list(people.values()),
        "film": [p for p in found if p.kind == "film"],
        "directed": [p for p in found if p.director in people],
        "work": [p for p in found if p.year and p.kind != "film"],
    }
    rng = random.Random(given.seed)
    rows = []
    while len(rows) < given.contexts:
        row = context(rng, groups, found)
        if row["qas"]:
            rows.append(row)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    given.output.write_bytes(gzip.compress(lines.encode(), mtime=0))
    answers = Counter(
        a if (a := qa["answers"][0]) in ("yes", "no") else "one of two" if " or " in qa["question"] else "other"
        for row in rows
        for qa in row["qas"]  # type: ignore[attr-defined]
    )
    print({"paragraphs": len(found), **{name: len(group) for name, group in groups.items()}, **answers})


if __name__ == "__main__":
    main()
