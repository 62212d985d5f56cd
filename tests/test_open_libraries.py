"""Libraries that stay open: shared writers, readers that follow, forks, copies of texts, letters, old versions."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from sac_rag import AskConfig, Conversation, SacRag
from sac_rag.config import ReadConfig
from sac_rag.errors import ConfigError, LibraryError, LibraryLocked, SacError
from sac_rag.library.library import Library
from sac_rag.records import NO_ANSWER, Document

SHORT = {"max_new_tokens": 4}


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "gate.txt").write_text("The north gate closes at nine.\n")
    (folder / "ferry.txt").write_text("The ferry leaves from pier four.\n")
    return folder


def others_may_write(library: Path) -> bool:
    code = "import sys; from sac_rag.library.library import Library; Library.open(sys.argv[1], write=True)"
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True)
    assert done.returncode == 0 or "LibraryLocked" in done.stderr, done.stderr
    return done.returncode == 0


def test_a_cell_that_is_run_again(docs: Path, tiny_config: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.lib"
    rag = SacRag.index(docs, path, tiny_config)
    first = rag.ask("When does the gate close?", **SHORT).text
    old, rag = rag, SacRag.index(docs, path)
    assert (
        old.ask("When does the gate close?", **SHORT).text
        == rag.ask("When does the gate close?", **SHORT).text
        == first
    )
    old.put([Document("note", "The lab is open.")])
    assert len(rag.library.documents()) == 3, "both see what either commits"
    old.close()
    with pytest.raises(LibraryError, match="open the library again"):
        old.ask("When?", **SHORT)
    rag.remove(["note"])
    assert not others_may_write(path)
    del rag, old
    gc.collect()
    assert others_may_write(path)


def test_an_exception_in_a_users_function(docs: Path, tiny_config: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.lib"

    def broken() -> None:
        rag = SacRag.index(docs, path, tiny_config)
        rag.ask("When does the gate close?", conversation=Conversation(), **SHORT)
        raise RuntimeError("a mistake in the cell")

    kept: list[BaseException] = []
    try:
        broken()
    except RuntimeError as error:
        kept.append(error)  # as a notebook keeps the last one, with its frames
    with SacRag.index(docs, path) as rag:
        assert rag.report.unchanged == 2
    kept.clear()
    gc.collect()
    assert others_may_write(path)


def test_writers_wait(docs: Path, tiny_config: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.lib"
    SacRag.index(docs, path, tiny_config).close()
    held = Library.open(path, write=True)  # not shared: as another process would hold it
    with pytest.raises(LibraryLocked):
        Library.open(path, write=True, wait=0.2)
    threading.Timer(0.4, held.close).start()
    with Library.open(path, write=True, wait=60):
        pass


def test_opening_to_write_later_reads_until_then(docs: Path, tiny_config: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.lib"
    with SacRag.open(path, config=tiny_config, create=True, later=True) as rag:
        assert not rag.library.writable and others_may_write(path)
        assert rag.ask("When?", **SHORT).text == NO_ANSWER
        rag.put([Document("a", "The gate closes at nine.")])
        assert rag.library.writable and not others_may_write(path)
        assert rag.ask("When?", **SHORT).sources
    with SacRag.open(path) as reader, pytest.raises(LibraryError, match="open for reading"):
        reader.put([Document("b", "Two.")])


def test_an_open_reader_answers_from_nothing_that_was_erased(docs: Path, tiny_config: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.lib"
    SacRag.index(docs, path, tiny_config).close()
    with SacRag.open(path) as reader:
        talk, question = Conversation(), "When does the north gate close?"
        for ask in (
            lambda: [h.passage.document for h in reader.ask(question, k=5, **SHORT).sources],
            lambda: [h.passage.document for h in reader.ask(question, k=5, conversation=talk, **SHORT).sources],
            lambda: [h.passage.document for h in reader.retrieve(question, AskConfig(k=5))],
        ):
            with SacRag.open(path, write=True) as writer:
                writer.put([Document("secret", "The north gate closes at ten, says Ida.")])
            assert "secret" in ask()
            with SacRag.open(path, write=True) as writer:
                writer.remove(["secret"])
                writer.gc()
            assert "secret" not in ask()
        stream = reader.stream(question, conversation=talk, **SHORT)
        assert [*stream] and stream.answer.usage.anchors > 0


def test_questions_beside_removals_are_all_answered(tiny_config: Any, tmp_path: Path) -> None:
    with SacRag.open(tmp_path / "a.lib", config=tiny_config, create=True) as rag:
        texts = {f"d{n}": f"The gate of house {n} closes at {n}." for n in range(12)}
        rag.put([Document(uri, text) for uri, text in texts.items()])
        failures: list[BaseException] = []
        stop = threading.Event()

        def remove() -> None:
            while not stop.is_set():
                for uri, text in texts.items():
                    rag.remove([uri])
                    rag.put([Document(uri, text)])

        def ask() -> None:
            try:
                for n in range(12):
                    rag.ask(f"When does the gate of house {n} close?", k=6, max_new_tokens=1)
                    rag.diverse(f"gate of house {n}", 3, fetch=8)
            except BaseException as error:
                failures.append(error)

        remover, askers = threading.Thread(target=remove), [threading.Thread(target=ask) for _ in range(3)]
        for t in (remover, *askers):
            t.start()
        for t in askers:
            t.join()
        stop.set()
        remover.join()
        assert failures == []


def child(body: Any) -> str:
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            said = str(body())
        except SacError as error:
            said = f"{type(error).__name__}: {error}"
        except BaseException as error:
            said = repr(error)
        os.write(write, said[:2000].encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


def test_after_a_fork_questions_are_refused_and_do_not_hang(docs: Path, tiny_config: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.lib"
    with SacRag.index(docs, path, tiny_config) as rag:
        rag.ask("When does the gate close?", **SHORT)
        uses = {
            "ask": lambda: rag.ask("When?", **SHORT),
            "stream": lambda: list(rag.stream("When?", **SHORT)),
            "retrieve": lambda: rag.retrieve("When?"),
            "embed": lambda: rag.embed(["x"]),
            "remember": lambda: rag.remember(["An otter swims."]),
            "token_ids": lambda: rag.token_ids("x"),
            "put": lambda: rag.put([Document("a", "One.")]),
            "open": lambda: SacRag.open(path),
        }
        for name, use in uses.items():
            said = child(use)
            assert said.startswith("ProcessForked") and "forked from it" in said and "preload" in said, name
        assert rag.ask("When does the gate close?", **SHORT).sources, "the parent goes on"


def test_a_library_is_pickled_as_its_path(docs: Path, tiny_config: Any, tmp_path: Path) -> None:
    with SacRag.index(docs, tmp_path / "a.lib", tiny_config) as rag:
        assert copy.deepcopy(rag) is copy.copy(rag) is rag
        with pickle.loads(pickle.dumps(rag)) as again:
            assert not again.library.writable and again.engine.dtype == rag.engine.dtype
            assert (
                again.ask("When does the gate close?", **SHORT).text
                == rag.ask("When does the gate close?", **SHORT).text
            )


def test_answers_come_from_different_texts(tiny_config: Any, tmp_path: Path) -> None:
    with SacRag.open(tmp_path / "a.lib", config=tiny_config, create=True) as rag:
        copies = [
            Document(f"copy{n}", ("The gate closes at nine.", "The  gate closes\nat nine.")[n % 2]) for n in range(9)
        ]
        rag.put([*copies, Document("ferry", "The gate of the ferry."), Document("lab", "A gate in the lab.")])
        for search in ("hybrid", "dense", "lexical"):
            texts = {
                " ".join(h.passage.text.split()) for h in rag.ask("gate closes", k=3, search=search, **SHORT).sources
            }
            assert len(texts) == 3, search


def test_numbers_of_passages_are_whole_and_above_0(docs: Path, tiny_config: Any, tmp_path: Path) -> None:
    with SacRag.index(docs, tmp_path / "a.lib", tiny_config) as rag:
        for k in (0, -3, 2.5, "3", True, None):
            with pytest.raises(ConfigError, match="k is"):
                rag.ask("When?", k=k)
            with pytest.raises(LibraryError, match="k is"):
                rag.library.search(None, "gate", k, mode="lexical")  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="k is"):
                rag.diverse("gate", k, fetch=9)  # type: ignore[arg-type]


def test_letters_meet_in_any_form(tiny_config: Any, tmp_path: Path) -> None:
    def nfd(text: str) -> str:
        return unicodedata.normalize("NFD", text)

    texts = {
        "a": "The caf\u00e9 M\u00fcller bakes b\u00f6rek.",
        "b": "The town hall is closed.",
        "c": nfd("Se\u00f1or Nu\u00f1ez repairs pi\u00f1atas."),
    }
    with SacRag.open(tmp_path / "a.lib", config=tiny_config, create=True) as rag:
        rag.put([Document(u, t, headings=((0, "H"), (len(t) - 4, "I"))) for u, t in texts.items()])
        for p in rag.library.passages():
            assert unicodedata.is_normalized("NFC", p.text)
            assert p.text == unicodedata.normalize("NFC", texts[p.document])[p.start : p.end]
        words = (("caf\u00e9 M\u00fcller", "a"), ("Nu\u00f1ez pi\u00f1atas", "c"))
        asked = [(form(q), u) for form in (str, nfd, str.upper) for q, u in words]
        for question, want in (*asked, ("cafe muller borek", "a"), ("nunez", "c"), ("\uff43\uff41\uff46\u00e9", "a")):
            assert rag.retrieve(question, AskConfig(search="lexical"))[0].passage.document == want
        one, two = (rag.retrieve(form("caf\u00e9 M\u00fcller"), AskConfig(k=3)) for form in (str, nfd))
        assert one == two
        rag.put([Document(nfd("men\u00fc.txt"), "Soup of the day.")])
        where = {"document": "men\u00fc.txt"}
        assert rag.retrieve("soup", where=where)[0].passage.text == "Soup of the day."
        assert rag.remove(["men\u00fc.txt"]) == 1
        with pytest.raises(LibraryError, match="no document"):
            rag.remove(["men\u00fc.txt"])


def test_an_unreadable_new_version_is_told_with_the_old_one(docs: Path, tiny_config: Any, tmp_path: Path) -> None:
    with SacRag.index("docs", tmp_path / "a.lib", tiny_config) as rag:
        generation = rag.library.head.generation
        rag.add("docs")
        assert rag.library.head.generation == generation
        (docs / "gate.txt").write_bytes(b"%PDF-1.7\x00\x01\x02\x00 no text \xff\xfe\x00")
        rag.add("docs")
        assert [s.path for s in rag.report.skipped] == ["docs/gate.txt"]
        (stored,) = rag.library.documents(["docs/gate.txt"])
        assert stored.stale == rag.report.skipped[0].reason
        generation = rag.library.head.generation
        rag.add("docs")
        assert rag.library.head.generation == generation, "noted once"
        answer = rag.ask("When does the north gate close?", where={"document": "docs/gate.txt"}, **SHORT)
        assert answer.sources and f"({stored.stale})" in answer.notices[-1] and "docs/gate.txt" in answer.notices[-1]
        assert rag.ask("Where?", where={"document": "docs/ferry.txt"}, **SHORT).notices == ()
        (docs / "gate.txt").write_text("The north gate closes at nine.\n")  # as it was
        assert rag.add("docs").changed == 1 and rag.report.passages == 0
        assert rag.library.documents(["docs/gate.txt"])[0].stale is None
        assert rag.library.verify() == []
        (docs / "gate.txt").write_bytes(b"\x00\x01\x02\xff\x00\xfe")
        rag.add("docs")
        (docs / "gate.txt").unlink()
        assert rag.add("docs", sync=True).removed == 1, "gone is gone, also after it was unreadable"


def _pdf(path: Path, text: str, password: str = "") -> None:
    from fpdf import FPDF

    pdf = FPDF()
    pdf.add_page()
    pdf.set_font("helvetica", size=12)
    pdf.cell(text=text)
    if password:
        pdf.set_encryption(owner_password=password, user_password=password)
    pdf.output(str(path))


def _docx(path: Path, text: str) -> None:
    from docx import Document as Word

    word = Word()
    word.add_paragraph(text)
    word.save(str(path))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_whatever_makes_a_new_version_unreadable_is_told(docs: Path, tiny_config: Any, tmp_path: Path) -> None:
    """A password, a file that was cut short, one over a limit: the reason differs, what is said does not."""
    _pdf(docs / "locked.pdf", "The pool opens at six.")
    _pdf(docs / "damaged.pdf", "The hall opens at seven.")
    _docx(docs / "cut.docx", "The desk opens at eight.")
    with SacRag.index("docs", tmp_path / "a.lib", tiny_config) as rag:
        assert rag.report.skipped == [] and rag.report.added == 5
        _pdf(docs / "locked.pdf", "The pool opens at ten.", "secret")
        _cut(docs / "damaged.pdf")
        _cut(docs / "cut.docx")
        (docs / "gate.txt").write_text("The north gate closes at ten. " * 40)
        report = rag.add("docs", reading=ReadConfig(text_chars=1000))
        names = {f"docs/{name}" for name in ("locked.pdf", "damaged.pdf", "cut.docx", "gate.txt")}
        reasons = {skip.path: skip.reason for skip in report.skipped}
        assert reasons.keys() == names and len(set(reasons.values())) >= 3
        assert {d.uri: d.stale for d in rag.library.documents() if d.stale} == reasons
        for name in sorted(names):
            answer = rag.ask("When does it open?", where={"document": name}, **SHORT)
            assert f"({reasons[name]})" in answer.notices[-1] and name in answer.notices[-1]
        assert rag.add("docs").changed == 1, "the limit is as it was: one is read again"
        assert {d.uri for d in rag.library.documents() if d.stale} == names - {"docs/gate.txt"}


def test_what_was_given_is_not_forgotten_for_a_file_of_its_name(docs: Path, tiny_config: Any, tmp_path: Path) -> None:
    with SacRag.index("docs", tmp_path / "a.lib", tiny_config) as rag:
        given = [Document(f"docs/{name}.txt", f"The {name} is open.") for name in ("lab", "desk", "pool")]
        rag.put(given)
        for reason in (
            b"\x00\x01\x02\xff\x00\xfe",
            b"%PDF-1.7\x00\x01\x02\x00 no text \xff\xfe\x00",
            b"\x02\x00\xff" * 9,
        ):
            for d in given:
                Path(d.uri).write_bytes(reason)
            rag.add("docs")
            assert {s.path for s in rag.report.skipped} == {d.uri for d in given}
        for d in given:
            Path(d.uri).unlink()
        assert rag.add("docs", sync=True).removed == 0
        assert {d.uri for d in given} <= {d.uri for d in rag.library.documents()}
