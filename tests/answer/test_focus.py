"""Texts longer than a passage are read as the passages that fit the question best, whoever put them into a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sac_rag import AskConfig, SacRag
from sac_rag.answer.chat import Content, Message
from sac_rag.answer.focus import best
from sac_rag.answer.prompt import Recall
from sac_rag.answer.tags import PassageRef
from sac_rag.records import Document
from tests.answer.test_chat import TEMPLATE

WORDS = ["canal", "bridge", "tides", "barn", "moon", "rust", "rooster"]


def story(words: Sequence[str], mark: str = "") -> str:
    """A text of one passage a word, in their order."""
    return "\n\n".join(
        f"Of {mark}the {word}. " + f"It is all about the {word} and nothing else. " * 2 for word in words
    )


@pytest.fixture
def rag(tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SacRag]:
    with SacRag.open(tmp_path / "a.lib", config=tiny_config, write=True, create=True) as opened:

        def encode(texts: Sequence[str], *, kind: str = "passage") -> np.ndarray:
            """How often each word stands in a text."""
            rows = np.array([[text.lower().count(w) + 1e-3 for w in WORDS] for text in texts], np.float32)
            rows = np.pad(rows, ((0, 0), (0, opened.embedder.dim - len(WORDS))))
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

        monkeypatch.setattr(opened.embedder, "encode", encode)
        monkeypatch.setattr(opened.engine.method.backbone.tokenizer, "chat_template", TEMPLATE)
        opened.put([Document("long", story(WORDS)), Document("short", "The rooster crowed.")])
        yield opened


def read(rag: SacRag, *messages: tuple[str, str]) -> list[list[str]]:
    """The passages that are read of messages, run by run, best first."""
    prompt = rag.conversation([Message(role, rag.recall(text)) for role, text in messages], history="all")
    return [list(part.key[1]) for part in prompt.parts if isinstance(part, Recall)]


def passages(rag: SacRag) -> dict[str, str]:
    """word -> the id of the stored passage that is about it."""
    ids = rag.library.passage_ids("long")
    assert len(ids) == len(WORDS)
    return dict(zip(WORDS, ids, strict=True))


def test_a_stored_text_is_read_as_its_best_passages(rag: SacRag) -> None:
    by = passages(rag)
    tags = rag.stored_tag("long", story(WORDS))
    rag.offer(story(WORDS), tags or "")
    for text in (tags, story(WORDS)):
        for word in ("tides", "barn"):
            ((first, *rest),) = read(rag, ("user", f"Context:\n{text}\n\nQuery: What of the {word}?\nAnswer:"))
            assert first == by[word] and len(rest) == AskConfig.k - 1
    prompt = rag.conversation([Message("user", rag.cite(f"{tags} The barn?"))])
    assert prompt.notices == ("of texts longer than a passage the passages that fit best are read, 5 of 7",)
    assert rag.best(rag.cite(tags or ""), "The moon?")[0] == PassageRef(by["moon"])


def test_a_remembered_text_is_read_as_its_best_passages(rag: SacRag) -> None:
    text = story(WORDS[::-1])
    (whole,) = rag.remember([text])
    parts = dict(zip(WORDS[::-1], rag._loose.passages(whole), strict=True))
    for word in ("canal", "rust"):
        ((first, *rest),) = read(rag, ("user", f"{rag.tag(whole)}\nQuestion: What of the {word}?"))
        assert first == parts[word] and len(rest) == AskConfig.k - 1
    held = rag._loose._held[parts["rust"]].vector
    assert held is not None and held.argmax() == WORDS.index("rust"), "it is embedded once"


def test_of_each_text_at_least_one_passage_is_read_and_short_ones_stay(rag: SacRag) -> None:
    by, (short,) = passages(rag), rag.library.passage_ids("short")
    texts = [story([word, "rust"], f"{n} ") for n, word in enumerate(WORDS[:5])]
    ids = rag.remember(texts)
    parts = [rag._loose.passages(i) for i in ids]
    tags = "\n\n".join([rag.tag(short), *map(rag.tag, ids), rag.stored_tag("long", story(WORDS)) or ""])
    (got,) = read(rag, ("user", f"{tags}\n\nWhat of the rust?"))
    assert got == [short, *(p[1] for p in parts), by["rust"]]
    few = f"{rag.tag(ids[0])}\n\n{rag.tag(short)}"
    assert read(rag, ("user", f"{few}\n\nThe canal?")) == [[parts[0][0], short, parts[0][1]]]


def test_retrieved_passages_stay_as_they_were_given(rag: SacRag) -> None:
    by = passages(rag)
    for joined in ("\n\n", " ", ""):
        tags = joined.join(map(rag.tag, by.values()))
        assert read(rag, ("user", f"{tags} What of the barn?")) == [list(by.values())]
    apart = [by[w] for w in ("moon", "canal", "tides")]  # line by line, but no text
    assert read(rag, ("user", "\n".join(map(rag.tag, apart)) + "\nThe canal?")) == [apart]


def test_the_question_is_that_of_the_messages_own_turn(rag: SacRag) -> None:
    by, tags = passages(rag), rag.stored_tag("long", story(WORDS))

    def first(*messages: tuple[str, str]) -> str:
        (run,) = read(rag, *messages)
        return next(word for word, i in by.items() if i == run[0])

    assert first(("user", f"{tags} The barn?"), ("assistant", "Yes."), ("user", "What of the moon?")) == "barn"
    assert (
        first(("system", f"Read {tags}."), ("user", "The barn?"), ("assistant", "Yes."), ("user", "The moon?"))
        == "moon"
    )
    assert first(("user", "The tides?"), ("assistant", "search()"), ("user", f"Result of search:\n{tags}")) == "tides"
    assert first(("user", "The rust?"), ("assistant", "Yes."), ("user", f"{tags} And is it old?")) == "rust"
    assert first(("user", f"What of the moon? Use what follows.\n{tags}\nDo not speak of the canal.")) == "moon"


def test_where_nothing_is_asked_all_is_read(rag: SacRag) -> None:
    tags = rag.stored_tag("long", story(WORDS)) or ""
    assert read(rag, ("user", tags)) == [list(passages(rag).values())]


def test_texts_apart_are_cut_where_they_stand() -> None:
    """With words between them, each keeps its place; blanks between passages count for nothing."""
    a, b, c, d = map(PassageRef, "abcd")
    texts = {"a": (("a", "b"), 3), "c": (("c",), 1), "d": (("d",), 1)}

    def text_at(content: Content, at: int) -> tuple[tuple[str, ...], int]:
        ids, length = texts[content[at].id]  # type: ignore[union-attr]
        return ids, at + length

    def fit(ids: Sequence[str], lines: Sequence[str]) -> dict[str, float]:
        assert (sorted(ids), lines) == (["a", "b"], ["Who?"])
        return {"a": 0.1, "b": 0.2}

    content: Content = ("One: ", a, "\n", b, "\nTwo: ", c, " \n", d, "\n", "end")
    for most, want in (
        (2, ("One: ", b, "\nTwo: ", c, d, "\n", "end")),
        (4, ("One: ", b, a, "\nTwo: ", c, d, "\n", "end")),
    ):
        assert best(content, text_at, fit, most, ["Some words.", "Who?"]) == (want, (most // 2, 2))
    assert best(content, text_at, fit, 2, []) == (content, (0, 0))
    assert best((c, "Who?"), text_at, fit, 1, ["Who?"]) == ((c, "Who?"), (0, 0))


def test_messages_are_read_behind_the_turns_that_they_refer_to(rag: SacRag) -> None:
    tags = {word: rag.tag(i) for word, i in passages(rag).items()}

    def runs(*texts: str, system: str = "", **settings: Any) -> list[list[str]]:
        said = [Message("user" if n % 2 == 0 else "assistant", rag.cite(text)) for n, text in enumerate(texts)]
        front = [Message("system", rag.cite(system))] if system else []
        prompt = rag.conversation([*front, *said], **settings)
        return [list(part.key[1]) for part in prompt.parts if isinstance(part, Recall)]

    by = passages(rag)
    earlier = (f"{tags['moon']}\nQuestion: The moon?", "Yes.", f"{tags['barn']}\nQuestion: And its barn?", "No.")
    assert runs(*earlier, f"{tags['rust']}\nQuestion: Who made the rust?") == [[by["rust"]]]
    assert runs(*earlier, f"{tags['rust']}\nQuestion: Who made it?") == [[by["moon"]], [by["barn"]], [by["rust"]]]
    assert runs(*earlier, f"{tags['rust']} Who made the rust?", history="all")[:-1] == [[by["moon"]], [by["barn"]]]
    assert runs(*earlier, "Who made the rust?") == [[by["moon"]], [by["barn"]]], "it brings no passages of its own"
    assert runs(*earlier, tags["rust"])[:-1] == [[by["moon"]], [by["barn"]]], "it has no words"
    assert runs(*earlier, "Who made the rust?", system=tags["rust"]) == [[by["rust"]]]
    assert len(runs(*earlier, "And why?", system=tags["rust"])) == 3
    talk = [Message("user", ("The moon?",)), Message("assistant", ("Yes.",)), Message("user", ("The barn?",))]
    assert rag.conversation(talk).units() == rag.conversation(talk, history="all").units()
