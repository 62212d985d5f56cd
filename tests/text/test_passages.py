"""Passages: nothing lost, nothing longer than allowed, ids that stay."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from sac_rag.errors import ConfigError, DocumentError, ModelError
from sac_rag.records import Document
from sac_rag.text.breaks import find_breaks
from sac_rag.text.cleaning import clean
from sac_rag.text.passages import Offsets, offsets_of, passage_id, split

PROSE = (
    "Dr. Smith went to Washington D.C. on Jan. 5 at 3.14 p.m. He met Mr. J. R. Jones there. They said: \"It's fine. "
    'Really!" Then they left. What now? See Fig. 3 and http://x.org/a.b?c=d for more.'
)


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE with a few merges: tokens cross no word, characters may take up to four tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROSE, "the valve of the pump and the pump of the valve"], trainer)
    return tokenizer


TOKENIZER = make_tokenizer()
TOKENIZER.encode_special_tokens = True


def bpe(text: str) -> list[tuple[int, int]]:
    return TOKENIZER.encode(text, add_special_tokens=False).offsets


def words(text: str) -> list[tuple[int, int]]:
    """One token a word or sign: sizes can be counted by eye."""
    return [m.span() for m in re.finditer(r"\w+|[^\w\s]", text)]


def ink(text: str) -> str:
    return "".join(text.split())


def texts(source: str, max_tokens: int, **kwargs: int) -> list[str]:
    return [p.text for p in split(Document("d", source), words, max_tokens=max_tokens, **kwargs)]


PIECES = st.sampled_from(
    ["word", "The pump.", " ", "  ", "\n", "\n\n", "\t", "# Head\n", "Dr. Who", "今天天气很好。", "🙂", "👩‍👩‍👧", "é",
     "x" * 50, "...", "?!", '"', "(", "\u00a0", "\u2028", "a\u0323\u0302", "<|end|>", "1.5", "http://a.b/c?d", "\x1c"]
)  # fmt: skip
SOURCES = st.lists(PIECES | st.text(max_size=8), max_size=60).map(lambda parts: clean("".join(parts)))


@st.composite
def documents(draw: st.DrawFn) -> Document:
    text = draw(SOURCES)
    offsets = draw(st.lists(st.integers(0, len(text)), max_size=4, unique=True).map(sorted))
    media_type = draw(st.sampled_from(["text/plain", "text/x-code; language=python"]))
    return Document("a/b.txt", text, media_type, tuple((at, f"H{at}") for at in offsets))


@settings(max_examples=150, deadline=None)
@given(documents(), st.integers(4, 60), st.sampled_from([bpe, words]))
def test_nothing_is_lost_and_nothing_too_long(document: Document, max_tokens: int, count_offsets: Offsets) -> None:
    passages = split(document, count_offsets, max_tokens=max_tokens)
    assert "".join(ink(p.text) for p in passages) == ink(document.text)
    done = 0
    for i, passage in enumerate(passages):
        assert (passage.ordinal, passage.document) == (i, document.uri)
        assert passage.text == document.text[passage.start : passage.end]
        assert passage.text == passage.text.strip() != ""
        assert passage.start >= done
        done = passage.end
        assert passage.tokens == len(count_offsets(passage.text)) <= max_tokens
        assert passage.heading == [("", ""), *((at, h) for at, h in document.headings if at <= passage.start)][-1][1]


@settings(max_examples=100, deadline=None)
@given(documents(), st.integers(4, 40), st.data())
def test_overlapping_passages_cover_everything_and_advance(document: Document, max_tokens: int, data) -> None:
    overlap = data.draw(st.integers(0, max_tokens - 1))
    passages = split(document, bpe, max_tokens=max_tokens, overlap=overlap)
    covered = "".join(
        document.text[max(p.start, before.end if before else 0) : p.end]
        for before, p in zip([None, *passages], passages, strict=False)
    )
    assert ink(covered) == ink(document.text)
    for before, passage in pairwise(passages):
        assert before.start < passage.start
        assert before.end < passage.end
        # tokenised alone, the first word of what they share may take more tokens than behind a space
        assert len(bpe(document.text[passage.start : before.end])) <= overlap + 4
        assert passage.tokens <= max_tokens
    assert len({p.id for p in passages}) == len(passages)


@settings(max_examples=100, deadline=None)
@given(documents(), st.integers(4, 40))
def test_ids_are_unique_stable_and_as_documented(document: Document, max_tokens: int) -> None:
    passages = split(document, bpe, max_tokens=max_tokens)
    assert passages == split(document, bpe, max_tokens=max_tokens)
    assert len({p.id for p in passages}) == len(passages)
    for i, passage in enumerate(passages):
        occurrence = sum(p.text == passage.text for p in passages[:i])
        digest = hashlib.sha256(f"a/b.txt\0{passage.text}\0{occurrence}".encode()).hexdigest()
        assert passage.id == passage_id("a/b.txt", passage.text, occurrence) == digest[:32]
    elsewhere = split(replace(document, uri="other"), bpe, max_tokens=max_tokens)
    assert not {p.id for p in elsewhere} & {p.id for p in passages}


def test_appending_keeps_the_ids_of_what_was_there() -> None:
    source = "\n\n".join(f"Paragraph {i}. {PROSE}" for i in range(40))
    old = split(Document("d", source), bpe, max_tokens=128)
    new = split(Document("d", source + "\n\nOne more. " + PROSE), bpe, max_tokens=128)
    assert [p.id for p in new][: len(old) - 1] == [p.id for p in old][:-1]


# Where the cuts fall


def test_short_text_is_one_passage() -> None:
    assert texts("  One. Two.\n\nThree. ", 50) == ["One. Two.\n\nThree."]
    assert texts(" \n\n\t ", 50) == texts("", 50) == []


def test_sentences_stay_whole() -> None:
    assert texts("Dr. Jones came at 3.15 p.m. to us. He left. All was well then. End.", 16) == [
        "Dr. Jones came at 3.15 p.m. to us.",
        "He left. All was well then. End.",
    ]


def test_wrapped_lines_are_no_sentence_ends() -> None:
    assert texts("One two\nthree four. Five six\nseven eight. Nine", 7) == [
        "One two\nthree four.",
        "Five six\nseven eight. Nine",
    ]


def test_a_paragraph_end_is_better_than_a_sentence_end() -> None:
    source = "One a b c. Two d e f.\n\nThree gone. Four here. Five i j k l m."
    assert texts(source, 15) == ["One a b c. Two d e f.", "Three gone. Four here. Five i j k l m."]
    assert texts(source.replace("\n\n", " "), 15) == ["One a b c. Two d e f. Three gone.", "Four here. Five i j k l m."]


def test_a_paragraph_end_in_the_first_half_does_not_count() -> None:
    assert texts("One a.\n\nTwo b c d. Three e f. Four g h i.", 12) == [
        "One a.\n\nTwo b c d. Three e f.",
        "Four g h i.",
    ]


def test_a_heading_is_better_than_a_paragraph_end() -> None:
    source = "One a b c d e.\n\nHead\n\nTwo f.\n\nThree gone. Four h i j k l."
    assert texts(source, 13) == ["One a b c d e.\n\nHead\n\nTwo f.", "Three gone. Four h i j k l."]
    document = Document("d", source, headings=((source.index("Head"), "Top > Head"),))
    assert [(p.text, p.heading) for p in split(document, words, max_tokens=13)] == [
        ("One a b c d e.", ""),
        ("Head\n\nTwo f.\n\nThree gone.", "Top > Head"),
        ("Four h i j k l.", "Top > Head"),
    ]


def test_long_sentences_are_cut_at_spaces_then_anywhere() -> None:
    assert texts("a b c d e f g h i j", 4) == ["a b c d", "e f g h", "i j"]
    passages = split(Document("d", "xyz" * 100), lambda text: [(i, i + 1) for i in range(len(text))], max_tokens=64)
    assert [len(p.text) for p in passages] == [64, 64, 64, 64, 44]


def test_code_is_cut_at_lines() -> None:
    source = 'def f():\n    g("Hi. You.")\n    h("Oh. No.")\n    i("a. b.")\n'
    code = Document("d.py", source, "text/x-code; language=python")
    assert [p.text for p in split(code, words, max_tokens=22)] == [
        'def f():\n    g("Hi. You.")',
        'h("Oh. No.")\n    i("a. b.")',
    ]


def test_overlap_repeats_whole_sentences_where_they_fit() -> None:
    source = "One a. Two b. Three c. Four d. Five e."
    assert texts(source, 9, overlap=3) == ["One a. Two b. Three c.", "Three c. Four d. Five e."]
    assert texts(source, 9, overlap=2) == ["One a. Two b. Three c.", "c. Four d. Five e."]


def test_passages_carry_pages() -> None:
    document = Document("d.pdf", "one two. three four.\n\nfive six.", meta={"pages": [0, 22], "title": "T"})
    assert [(p.text, p.meta) for p in split(document, words, max_tokens=6)] == [
        ("one two. three four.", {"page": 1}),
        ("five six.", {"page": 2}),
    ]


def test_token_limit_holds_where_a_cut_changes_tokens() -> None:
    def unsteady(text: str) -> list[tuple[int, int]]:
        """Pairs of letters counted from the start of the text; a lonely last one costs five."""
        pairs = [(i, i + 2) for i in range(0, len(text) - 1, 2)]
        return pairs + [(len(text) - 1, len(text))] * 5 * (len(text) % 2)

    passages = split(Document("d", "x" + " y" * 500), unsteady, max_tokens=8)
    assert all(p.tokens == len(unsteady(p.text)) <= 8 for p in passages)
    assert "".join(ink(p.text) for p in passages) == "x" + "y" * 500


def test_a_character_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(DocumentError, match="one character takes 4 tokens, over 3"):
        split(Document("d", "ab 🙂 cd"), bpe, max_tokens=3)
    assert [p.text for p in split(Document("d", "🙂🙂🙂"), bpe, max_tokens=7)] == ["🙂", "🙂", "🙂"]
    # four tokens each: the cut falls between characters at the first attempt, so passages are full
    assert [len(p.text) for p in split(Document("d", "🙂" * 40), bpe, max_tokens=63)] == [15, 15, 10]


def test_bad_arguments() -> None:
    for max_tokens, overlap in ((0, 0), (8, 8), (8, -1)):
        with pytest.raises(ConfigError):
            split(Document("d", "x"), words, max_tokens=max_tokens, overlap=overlap)
    with pytest.raises(DocumentError, match="not valid unicode"):
        split(Document("d", "a\ud800"), words)


# Hostile and large text


@pytest.mark.parametrize(
    "source",
    ["x" * 1_000_000, "\n" * 300_000 + "end", "a\n" * 150_000, ". " * 150_000, "今天天气很好。" * 50_000,
     "a. " * 100_000, 'He said "a. ' * 30_000, "a" + " " * 1_000_000 + "b", "\n\u00a0" * 100_000 + "end",
     "(" * 300_000, "🙂" * 60_000],
    ids=["word", "newlines", "lines", "dots", "cjk", "sentences", "quotes", "spaces", "blanks", "brackets", "emoji"],
)  # fmt: skip
def test_work_is_linear(source: str) -> None:
    read = 0

    def chars(text: str) -> list[tuple[int, int]]:
        nonlocal read
        read += len(text)
        return [(i, min(i + 4, len(text))) for i in range(0, len(text), 4) if not text[i : i + 4].isspace()]

    started = time.process_time()
    passages = split(Document("d", source), chars, max_tokens=256)
    assert time.process_time() - started < 10
    assert read < 3.5 * len(source) + 5_000
    assert "".join(ink(p.text) for p in passages) == ink(source)


def test_no_sentence_is_cut_by_the_windows_of_the_search() -> None:
    sentence = "This one sentence, number {}, has no end before its end. "
    source = "".join(sentence.format(i) for i in range(2_000))
    starts = [m.start() for m in re.finditer("This", source)]
    assert list(find_breaks(source, []).units) == starts


# Hugging Face tokenizers


def test_offsets_of_a_fast_tokenizer() -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), eos_token="<|end|>")
    count_offsets = offsets_of(fast)
    forged = "tell <|end|> me"
    assert list(count_offsets(PROSE)) == bpe(PROSE)
    assert list(count_offsets(forged)) == bpe(forged)
    assert len(count_offsets(forged)) > len(fast(forged)["input_ids"]), "a special token in a text is plain text"
    passages = split(Document("d", (PROSE + "\n\n") * 5 + forged), count_offsets, max_tokens=64)
    assert passages == split(Document("d", (PROSE + "\n\n") * 5 + forged), bpe, max_tokens=64)


def test_offsets_of_a_slow_tokenizer() -> None:
    with pytest.raises(ModelError, match="fast tokenizer"):
        offsets_of(object())
