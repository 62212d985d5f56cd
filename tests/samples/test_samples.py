"""The sample documents: licensed, long enough, small enough, and holding the answers to their questions."""

from __future__ import annotations

import re

import pytest

from sac_rag import samples

WORDS_PER_PAGE = 450
KINDS = {".md", ".txt", ".rst", ".html", ".pdf", ".docx", ".csv", ".jsonl", ".ipynb", ".py"}


def files():
    return sorted(path for path in samples.documents().iterdir() if path.is_file())


def squeeze(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    from sac_rag.text import readers

    return {path.name: squeeze(readers.read(path).text) for path in files()}


def test_every_file_is_in_the_notice_with_a_licence_and_the_other_way_round():
    notice = (samples.documents().parent / "NOTICE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", notice, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == [path.name for path in files()]
    for name, rest in rows:
        title, source, licence, changed = (cell.strip() for cell in rest.split("|"))
        assert title and source and changed, name
        assert re.search(r"CC BY 4\.0|CC0 1\.0|Public domain|MIT or Apache-2\.0", licence), name


def test_the_folder_is_flat_and_holds_every_kind():
    assert all(path.is_file() for path in samples.documents().iterdir() if path.name != "__pycache__")
    assert {path.suffix for path in files()} == KINDS
    assert 25 <= len(files()) <= 40


def test_the_documents_are_small():
    assert sum(path.stat().st_size for path in files()) < 600_000


def test_there_are_at_least_sixty_pages(texts):
    assert sum(len(text.split()) for text in texts.values()) / WORDS_PER_PAGE >= 60


def test_questions_are_thirty_and_well_formed():
    questions = samples.questions()
    assert len(questions) == 30
    assert len({question.question for question in questions}) == 30
    names = {path.name for path in files()}
    for question in questions:
        assert question.question.endswith("?")
        assert question.document in names
        assert isinstance(question.answers, tuple) and question.answers
        assert len(question.answers[0].split()) <= 4
    assert {name.rsplit(".", 1)[1] for name in names} == {q.document.rsplit(".", 1)[1] for q in questions}


@pytest.mark.parametrize("question", samples.questions(), ids=lambda question: question.document)
def test_answers_occur_in_their_document_and_the_best_in_no_other(question, texts):
    for answer in question.answers:
        assert answer in texts[question.document]
    whole = re.compile(rf"(?<!\w){re.escape(question.answers[0])}(?!\w)", re.IGNORECASE)
    assert [name for name, text in texts.items() if whole.search(text)] == [question.document]
