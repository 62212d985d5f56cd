"""A library for real: index, add, ls, info, verify, rm, gc."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from cli_toys import Sac, Toys

REPORT = {
    *("library", "files", "added", "changed", "unchanged", "removed", "skipped", "reasons", "notices"),
    *("passages", "tokens", "seconds", "bytes", "bytes_per_source_token"),
}


def test_index_says_what_it_did(sac: Sac, toys: Toys, documents: Path) -> None:
    first = sac("index", "docs", "--json", **toys.environment)
    assert first.code == 0, first.err
    report = first.json
    assert set(report) == REPORT
    assert (report["files"], report["added"], report["changed"], report["unchanged"]) == (3, 2, 0, 0)
    assert [skip["path"] for skip in report["skipped"]] == ["docs/empty.txt"]
    assert report["passages"] >= 4 and report["bytes_per_source_token"] > 0

    (documents / "travel.md").write_text("Nobody travels any more.\n")
    (documents / "keys.txt").unlink()
    again = sac("index", "docs", "--sync", "--json").json  # the library knows its settings
    assert (again["added"], again["changed"], again["unchanged"], again["removed"]) == (0, 1, 0, 1)


def test_what_is_left_out_is_one_list(sac: Sac, toys: Toys, documents: Path) -> None:
    for name in ("one", "two", "three", "four"):
        (documents / f"{name}.xyz").write_text("x")
    (documents / "big.txt").write_text("word " * 100)
    (documents / "old.txt").write_bytes("Straße nach Köln, über Müden".encode("cp1252"))
    (documents / "log.jsonl").write_text('{"day": "Monday"}\noops\n{"day": "Tuesday"}\n')
    (documents / ".gitignore").write_text("drafts/\n*.pdf\n*.o\n")
    (documents / ".git").mkdir()
    (documents / "drafts" / "deep").mkdir(parents=True)
    for name in ("drafts/a.md", "drafts/deep/b.md", "drafts/c.o", "drafts/.hidden.md", "plan.pdf", "x.o"):
        (documents / name).write_text("x")
    report = sac("index", "docs", "--json", "--file-bytes", "400", **toys.environment).json
    assert report["reasons"] == {
        "unknown file type": 4,
        "hidden by .gitignore": 3,
        "empty file": 1,
        "file over 400 bytes": report["reasons"]["file over 400 bytes"],
    }
    assert {"path": "docs/drafts/", "reason": "hidden by .gitignore", "files": 2} in report["skipped"]
    assert {"path": "docs/plan.pdf", "reason": "hidden by .gitignore", "files": 1} in report["skipped"]
    assert {"path": "docs/big.txt", "reason": "file over 400 bytes", "files": 1} in report["skipped"]
    assert report["notices"] == [
        {"path": "docs/log.jsonl", "notice": "1 of 3 lines left out, not valid json: 2"},
        {"path": "docs/old.txt", "notice": "not utf-8, read as windows-1252"},
    ]

    shown = sac("index", "docs", "--file-bytes", "400").err
    assert "skipped 4 files, unknown file type: docs/four.xyz, docs/one.xyz, docs/three.xyz and 1 more\n" in shown
    assert "skipped 3 files, hidden by .gitignore: docs/plan.pdf, docs/drafts/\n" in shown
    assert "skipped docs/empty.txt: empty file\n" in shown
    assert "docs/old.txt: not utf-8, read as windows-1252\n" in shown
    assert "--file-bytes" in shown
    assert "skipped docs/two.xyz: unknown file type\n" in sac("index", "docs", "-v").err


def test_limits_and_encoding_are_flags(sac: Sac, toys: Toys, documents: Path) -> None:
    (documents / "dos.csv").write_bytes("Straße;Größe\nKöln;7\n".encode("cp850"))
    first = sac("index", "docs", "--text-chars", "20", "--json", **toys.environment).json
    assert first["reasons"]["text over 20 characters"] == 3
    report = sac("add", "docs", "--encoding", "cp850", "--json").json
    assert (report["added"], report["notices"]) == (3, [])
    assert "Straße: Köln" in sac("ls", "docs/dos.csv", "--json").out
    wrong = sac("add", "docs", "--encoding", "zlib")
    assert wrong.code == 2 and "encoding is 'zlib'" in wrong.err


def test_index_for_people_and_pipes(sac: Sac, toys: Toys, documents: Path) -> None:
    result = sac("index", "docs", **toys.environment)
    assert "added\t2\n" in result.out and " of memory, " in result.out.partition("bytes per source token\t")[2]
    assert "skipped docs/empty.txt: " in result.err
    quiet = sac("index", "docs", "-q")
    assert "unchanged\t2\n" in quiet.out and quiet.err == ""


def test_the_bar_moves_within_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from sac_cli import console, indexing
    from sac_rag.indexing import IndexReport

    def last_frame(report: IndexReport) -> str:
        drawn = io.StringIO()
        monkeypatch.setattr(console, "shows_progress", lambda: True)
        monkeypatch.setattr(console, "err", lambda: Console(file=drawn, force_terminal=True, width=200))
        with indexing._bar() as show:
            show(report)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.getvalue())

    assert "finding files" in (found := last_frame(IndexReport(files=7, step="finding files"))) and "0/?" in found
    report = IndexReport(files=2, step="compressing", ahead=1.2, passages=30, tokens=500, seconds=2.0)
    frame = last_frame(report)
    assert all(text in frame for text in ("compressing", "1/2 files", "30 passages", "250 tokens/s"))


def test_paths_that_name_nothing(sac: Sac, library: str) -> None:
    result = sac("index", "nowhere")
    assert result.code == 1 and result.err.startswith("error: nowhere: there is no such file")
    result = sac("index", "docs/empty.txt")
    assert result.code == 1 and "no readable document" in result.err
    result = sac("index", "docs", "--strict")
    assert result.code == 1 and "empty.txt" in result.err


def denied(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Folders of these names cannot be opened, whoever runs the tests."""
    scandir = os.scandir

    def scan(path: Any) -> Any:
        if os.path.basename(os.path.normpath(path)) in names:
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)


def test_a_folder_that_cannot_be_opened_makes_no_library(
    sac: Sac, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures" / "private").mkdir(parents=True)
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"no text")
    denied(monkeypatch, "docs", "private")
    for command in ("index", "add"):
        refused = sac(command, "docs")
        assert (refused.code, refused.out) == (1, "") and refused.err == (
            "error: docs: permission denied: make it readable, or leave it out\n"
        )
    refused = sac("index", "docs", "--library", "new.lib")
    assert refused.code == 1 and "permission denied" in refused.err and not (tmp_path / "new.lib").exists()
    refused = sac("index", "pictures", "--library", "new.lib")
    assert refused.code == 1 and not (tmp_path / "new.lib").exists()
    assert "no file to index, 1 unknown file type, 1 permission denied;" in refused.err


def test_a_denied_folder_below_is_skipped_as_files_are(
    sac: Sac, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs" / "private").mkdir()
    (tmp_path / "docs" / "private" / "diary.txt").write_text("Nobody may read this.")
    denied(monkeypatch, "private")
    done = sac("index", "docs")
    assert done.code == 0 and "skipped docs/private/: permission denied" in done.err
    told = sac("index", "docs", "--json").json
    assert {"path": "docs/private/", "reason": "permission denied", "files": 1} in told["skipped"]
    assert told["unchanged"] == 2
    strict = sac("index", "docs", "--strict")
    assert strict.code == 1 and "docs/private/: permission denied" in strict.err


def test_nothing_to_index_is_a_failure(sac: Sac, library: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden.txt").write_text("Nobody asked for this.")
    for command in ("index", "add"):
        result = sac(command, "empty")
        assert result.code == 1 and result.err.startswith("error: empty: no file to index; hidden and ignored files")
    assert sac("index", "docs", "empty", "--json").json["unchanged"] == 2
    for path in (tmp_path / "docs").iterdir():
        path.unlink()
    assert sac("index", "docs", "--sync", "--json").json["removed"] == 2  # that they are gone is news


def test_add_needs_a_library(sac: Sac, library: str, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("The lamp burned whale oil until 1911, says the log.")
    assert sac("add", "more.txt", "--library", "other.lib").code == 3
    assert not (tmp_path / "other.lib").exists()
    assert sac("add", "more.txt", "--json").json["added"] == 1


@pytest.mark.parametrize("flag", [("--ratio", "15"), ("--codec", "int8"), ("--method", "icae")])
def test_a_library_keeps_its_settings(sac: Sac, library: str, flag: tuple[str, str]) -> None:
    result = sac("index", "docs", *flag)
    assert result.code == 3
    assert flag[0][2:].replace("-", "_") in result.err and flag[1] in result.err


def test_ls_of_several_libraries(sac: Sac, library: str, tmp_path: Path, toys: Toys) -> None:
    (tmp_path / "log.txt").write_text("The lamp burned whale oil until 1911, says the log.")
    assert sac("index", "log.txt", "docs/keys.txt", "--library", "other.lib", **toys.environment).code == 0
    both = f"--library={library},other.lib"
    rows = sac("ls", both, "--json").json["documents"]
    assert [(r["library"], r["document"]) for r in rows] == [
        *((library, "docs/keys.txt"), (library, "docs/travel.md")),
        *(("other.lib", "docs/keys.txt"), ("other.lib", "log.txt")),
    ]
    assert [line.split("\t")[:2] for line in sac("ls", both).out.splitlines()][3] == ["other.lib", "log.txt"]
    inside = sac("ls", "docs/keys.txt", both, "--json").json["passages"]
    assert {p["library"] for p in inside} == {library, "other.lib"}
    assert {p["library"] for p in sac("ls", "log.txt", both, "--json").json["passages"]} == {"other.lib"}
    for named in ((library, "other.lib"), ("other.lib",)):
        refused = sac("ls", *named)
        assert refused.code != 0 and f"write `sac ls --library {','.join(named)}`" in refused.err
    assert "2 documents are named" in sac("ls", "log.txt", "docs/keys.txt").err
    alone = sac("info", both)
    assert alone.code == 3 and "name one alone" in alone.err and "Library.create" not in alone.err


def test_ls(sac: Sac, library: str) -> None:
    listed = sac("ls", "--json").json["documents"]
    assert [d["document"] for d in listed] == ["docs/keys.txt", "docs/travel.md"]
    assert set(listed[0]) == {"document", "type", "passages", "tokens"}
    assert sac("ls").out.splitlines()[0].split("\t")[0] == "docs/keys.txt"
    inside = sac("ls", "docs/keys.txt", "--json").json
    text = Path("docs/keys.txt").read_text()
    assert all(p["text"] == text[p["start"] : p["end"]] for p in inside["passages"])
    missing = sac("ls", "docs/key.txt")
    assert missing.code == 1 and "Did you mean 'docs/keys.txt'?" in missing.err


def test_info(sac: Sac, library: str, toys: Toys) -> None:
    info = sac("info", "--json").json
    assert info["documents"] == 2 and info["fingerprint"]["model"] == str(toys.base)
    assert info["bytes_per_source_token"] == pytest.approx(info["total_bytes"] / info["source_tokens"])
    assert "documents\t2\n" in sac("info").out


def test_verify(sac: Sac, library: str) -> None:
    assert sac("verify", "--json").json == {"problems": []}
    (segment,) = Path(library).glob("**/*.safetensors")
    segment.chmod(0o600)
    data = bytearray(segment.read_bytes())
    data[-40] ^= 1
    segment.write_bytes(data)
    damaged = sac("verify")
    assert damaged.code == 1 and damaged.out.strip() and "problem" in damaged.err
    assert sac("verify", "--json").json["problems"]


def test_rm_and_gc(sac: Sac, library: str) -> None:
    refused = sac("rm", "docs/*")
    assert refused.code == 2 and "--yes" in refused.err
    assert sac("rm", "docs/nothing*").code == 1
    assert len(sac("ls", "--json").json["documents"]) == 2
    removed = sac("rm", "docs/tr*", "--json").json  # one match needs no consent
    assert removed["removed"] == ["docs/travel.md"] and removed["passages"] >= 3
    report = sac("gc", "--json").json
    assert report["bytes_after"] < report["bytes_before"]
    assert sac("rm", "docs/*", "--yes").out == "docs/keys.txt\n"
    assert sac("ls", "--json").json == {"documents": []}
    assert sac("verify").code == 0


def test_gc_refuses_a_share_that_is_none(sac: Sac, library: str) -> None:
    assert sac("gc", "--min-dead", "2").code == 2


def test_ctrl_c_keeps_what_is_committed(sac: Sac, toys: Toys, documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sac_rag import indexing

    (documents / "keys.txt").write_text("The spare key hangs behind the blue door. " * 20)
    monkeypatch.setattr("sac_rag.indexing.plan.GROUP_BYTES", 900)  # one file a commit
    whole, calls = indexing.Indexer._commit, []

    def interrupted(self: indexing.Indexer, *args: object) -> None:
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        whole(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(indexing.Indexer, "_commit", interrupted)
        result = sac("index", "docs", **toys.environment)
    assert result.code == 130
    assert result.err.count("\n") == 1 and "goes on from there" in result.err
    resumed = sac("index", "docs", "--json").json
    assert (resumed["unchanged"], resumed["added"]) == (1, 1)


def test_ctrl_c_that_a_library_swallowed_is_not_lost(
    sac: Sac, toys: Toys, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sac_rag import indexing

    whole = indexing.Indexer._commit

    def swallowing(self: indexing.Indexer, *args: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        whole(self, *args)  # type: ignore[arg-type]

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(indexing.Indexer, "_commit", swallowing)
        result = sac("index", "docs", **toys.environment)
    assert result.code == 130 and "what is committed stays" in result.err
    assert signal.getsignal(signal.SIGINT) is before
    assert sac("index", "docs", **toys.environment).code == 0
    assert len(sac("ls", "--json").json["documents"]) == 2


def test_a_newer_format_is_no_crash(sac: Sac, library: str) -> None:
    with sqlite3.connect(Path(library) / "catalog.sqlite") as catalog:
        catalog.execute("PRAGMA user_version=99")
        catalog.execute("PRAGMA application_id=1")
    result = sac("ls")
    assert result.code in (1, 3) and result.err.startswith("error: ")


def test_repair_makes_a_lost_segment_again(sac: Sac, library: str, toys: Toys) -> None:
    assert sac("repair", "--json").json["problems"] == []
    (segment,) = Path(library).glob("seg-*.safetensors")
    segment.unlink()
    damaged = sac("verify")
    assert damaged.code == 1 and "docs/keys.txt" in damaged.out and "docs/travel.md" in damaged.out
    report = sac("repair", "--json").json
    assert report["memories"] == len(report["problems"]) or report["memories"] > 2
    assert report["lost"] == [] and sac("verify", "--deep", "all").code == 0
    assert sac("verify", "--deep", "2", "--shallow", "--json").json == {"problems": []}
    assert sac("verify", "--deep", "some").code == 2


def test_repair_says_what_is_lost_and_index_brings_it_back(sac: Sac, library: str, toys: Toys) -> None:
    with sqlite3.connect(f"{library}/catalog.sqlite") as catalog:
        catalog.execute("UPDATE passages SET text = 'other' WHERE document = (SELECT min(document) FROM passages)")
    catalog.close()
    shown = sac("ls", "--json")
    assert len(shown.json["documents"]) == 2
    assert sac("index", "docs").code == 1
    report = sac("repair")
    assert report.code == 1 and "lost: a passage of 'docs/" in report.out and "sac index" in report.err
    assert sac("verify").code == 0
    again = sac("index", "docs", "--json").json
    assert again["changed"] == 2 and again["passages"] >= 1
    assert sac("index", "docs", "--json").json["unchanged"] == 2
    assert {p["text"] for d in export(sac) for p in d["passages"]} == {
        p["text"] for uri in ("docs/keys.txt", "docs/travel.md") for p in sac("ls", uri, "--json").json["passages"]
    }


def export(sac: Sac) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sac("export").out.splitlines()]


def test_export_gives_text_and_metadata(sac: Sac, library: str) -> None:
    documents = export(sac)
    assert [d["document"] for d in documents] == ["docs/keys.txt", "docs/travel.md"]
    for d in documents:
        text = Path(d["document"]).read_text()
        assert d["passages"] and all(p["text"] == text[p["start"] : p["end"]] for p in d["passages"])
        assert set(d) == {"document", "type", "meta", "passages"}
    assert sac("export", "--output", "out.jsonl").code == 0
    assert [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()] == documents
    assert sac("export", "--output", "out.jsonl").code == 2


def test_workers_make_the_same_library(sac: Sac, library: str, toys: Toys) -> None:
    result = sac("index", "docs", "--library", "two.lib", "--workers", "2", "--json", **toys.environment)
    assert result.code == 0 and result.json["added"] == 2
    segments = [{f.name: f.read_bytes() for f in Path(name).glob("seg-*")} for name in (library, "two.lib")]
    assert segments[0] == segments[1]
    assert sac("index", "docs", "--workers", "0").code == 2


def test_what_is_gone_already_may_be_missing(sac: Sac, library: str) -> None:
    assert sac("rm", "docs/travel.md", "--missing-ok").code == 0
    assert sac("rm", "docs/travel.md").code == 1
    again = sac("rm", "docs/travel.md", "docs/none*", "--missing-ok", "--json")
    assert again.code == 0 and again.json == {"removed": [], "passages": 0}
    both = sac("rm", "docs/travel.md", "docs/keys.txt", "--missing-ok", "--json")
    assert both.json["removed"] == ["docs/keys.txt"]


def test_names_are_found_in_either_form_of_their_letters() -> None:
    from sac_cli.options import matching

    nfc, nfd = "docs/men\u00fc.md", "docs/menu\u0308.md"
    assert matching(nfc, [nfd, "a"], "l") == [nfd] and matching(nfd, [nfc, "a"], "l") == [nfc]
    assert matching(nfd, [nfc, nfd], "l") == [nfd], "a name as it is goes first"
    assert matching("*\u00fc.md", [nfd, "docs/b.md"], "l") == [nfd]
    assert matching("a b.txt", ["a  b.txt", "c"], "l") == ["a  b.txt"], "as `sac ls` prints it"
    assert matching("d", ["a"], "l", missing_ok=True) == []


def test_writers_wait_for_each_other(sac: Sac, library: str) -> None:
    import threading

    from sac_rag.library.library import Library

    held = Library.open(library, write=True)
    assert sac("rm", "docs/travel.md").code == 1
    threading.Timer(0.4, held.close).start()
    assert sac("rm", "docs/travel.md", "--wait", "60").code == 0
    assert sac("gc", "--wait", "1").code == 0
    for command in (("recode", "int8"), ("repair",), ("recode", "bf16")):
        held = Library.open(library, write=True)
        refused = sac(*command)
        assert refused.code == 1 and "is being written by process" in refused.err
        threading.Timer(0.4, held.close).start()
        assert sac(*command, "--wait", "60").code == 0


def test_progress_is_told_in_lines_where_there_is_no_terminal(
    sac: Sac, toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("The key hangs in the hall. " * 20)
    monkeypatch.setattr("sac_cli.indexing.TOLD_S", 0.0)
    assert " of 1 files, " in sac("index", "docs", "--library", "new.lib", **toys.environment).err
    assert sac("index", "docs", "--library", "other.lib", "-q", **toys.environment).err == ""
