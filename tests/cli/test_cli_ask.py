"""Questions for real: streams, JSON, JSONL, both ways, chat; and what documents may not do to a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_toys import Sac, Toys

from sac_cli import console
from sac_rag.errors import ConfigError

ANSWER = {"answer", "fidelity", "confidence", "doubtful", "fell_back", "abstained", "finish_reason", "cut"}
ANSWER |= {"sources", "usage", "timings"}
SOURCE = {"id", "document", "start", "end", "score", "fused", "text"}
USAGE = {"attended_tokens", "memory_tokens", "source_tokens", "completion_tokens", "reused_tokens"}
TIMINGS = {"retrieve_s", "load_s", "first_token_s", "total_s"}
SHORT = {"SAC_MAX_NEW_TOKENS": "8", "SAC_DTYPE": "float32"}


def check_schema(answer: dict[str, Any]) -> None:
    assert set(answer) - {"notices", "question"} == ANSWER and answer.get("notices", ["there"])
    assert answer["sources"] and all(set(source) == SOURCE for source in answer["sources"])
    assert set(answer["usage"]) == USAGE and set(answer["timings"]) == TIMINGS


def test_json_of_an_answer(sac: Sac, library: str) -> None:
    result = sac("ask", "Where is the spare key?", "--json", **SHORT)
    assert result.code == 0, result.err
    check_schema(result.json)
    assert result.out.count("\n") == 1 and result.err == ""
    assert result.json["usage"]["completion_tokens"] <= 8
    source = result.json["sources"][0]
    text = Path(source["document"]).read_text()
    assert source["text"] == text[source["start"] : source["end"]]


def test_text_and_streamed_answers(sac: Sac, library: str) -> None:
    answer = sac("ask", "Who approves trips?", "--json", "--temperature", "0.9", "--seed", "3", **SHORT).json
    printed = sac("ask", "Who approves trips?", "--temperature", "0.9", "--seed", "3", **SHORT)
    body, _, sources = printed.out.rpartition("\n\n")
    assert body.strip() == answer["answer"]
    assert len(sources.strip().splitlines()) == len(answer["sources"])
    assert (
        sac("ask", "Who approves trips?", "-q", "--temperature", "0.9", "--seed", "3", **SHORT).out.strip()
        == body.strip()
    )
    plain = sac("ask", "Who approves trips?", "--text", "--json", **SHORT).json
    assert plain["usage"]["memory_tokens"] == 0
    assert plain["usage"]["attended_tokens"] > answer["usage"]["attended_tokens"]
    same = sac("ask", "Who approves trips?", "--fidelity", "text", "--json", **SHORT).json
    assert (same["answer"], same["fidelity"]) == (plain["answer"], "text") and answer["fidelity"] == "memory"
    mixed = sac("ask", "Who approves trips?", "--fidelity", "mixed", "-k", "2", "--json", **SHORT).json
    assert mixed["fidelity"] == "mixed" and len(mixed["sources"]) == 2 and mixed["usage"]["memory_tokens"] > 0


def test_questions_from_standard_input(sac: Sac, library: str) -> None:
    lines = "Where is the key?\n\nWho approves trips?\n"
    result = sac("ask", "-", "--json", "-k", "1", stdin=lines, **SHORT)
    assert result.code == 0
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert len(answers) == 2
    assert [answer["question"] for answer in answers] == ["Where is the key?", "Who approves trips?"]
    for answer in answers:
        check_schema(answer)
    assert sac("ask", "--json", "-k", "1", stdin=lines, **SHORT).out.count("\n") == 2  # a pipe needs no dash


def test_one_bad_question_does_not_cost_the_others(sac: Sac, library: str) -> None:
    result = sac("ask", "-", "--json", "-k", "1", stdin=f"{'why ' * 3000}\nWho?\n", **SHORT)
    first, second = map(json.loads, result.out.splitlines())
    assert result.code == 1 and set(first) == {"question", "error"} and set(second) - {"notices", "question"} == ANSWER
    assert sac("ask", "why " * 3000, **SHORT).code == 2


def test_words_alone_with_a_least_score(sac: Sac, library: str) -> None:
    """Cosines are compared whatever the search is: the question is embedded for them."""
    flags = ("--search", "lexical", "-k", "9", "--json")
    everything = sac("ask", "trips key", *flags, "--min-score", "-1", **SHORT)
    assert everything.code == 0, everything.err
    few = sac("ask", "trips key", *flags, "--min-score", "0.999", **SHORT).json
    assert len(everything.json["sources"]) > len(few["sources"])


def test_half_an_emoji_in_a_question(sac: Sac, library: str) -> None:
    result = sac("ask", "Who approves trips \ud83d?", "--json", **SHORT)
    assert result.code == 0, result.err
    check_schema(result.json)


def test_conditions(sac: Sac, library: str) -> None:
    result = sac("ask", "Where?", "--json", "--where", "document=docs/travel.md", **SHORT).json
    assert {s["document"] for s in result["sources"]} == {"docs/travel.md"}
    nothing = sac("ask", "Where?", "--where", "document=none", **SHORT)
    assert nothing.code == 0 and "no passage matched" in nothing.err and nothing.out == "The passages do not say.\n"
    alone = sac("ask", "Where?", "--where", "document=none", "--closed-book", **SHORT)
    assert "the model alone" in alone.err and alone.out != nothing.out
    assert sac("ask", "Where?", "--where", '{"document": {"$near": 1}}', **SHORT).code == 2
    assert sac("ask", "Where?", "--where", "document", **SHORT).code == 2


def test_conditions_find_numbers_and_either_value() -> None:
    from sac_cli.options import where_of

    assert where_of([]) is None
    assert where_of(["year=2024", "kind=a=b", "year=soon"]) == {"year": ["2024", 2024, "soon"], "kind": ["a=b"]}
    assert where_of(["year>=2024"]) == {"$or": [{"year": {"$gte": "2024"}}, {"year": {"$gte": 2024}}]}
    assert where_of(["day<2024-05-01", "kind!=true"]) == {
        "$and": [{"day": {"$lt": "2024-05-01"}}, {"kind": {"$nin": ["true", True]}}]
    }
    assert where_of(['{"$not": {"a": 1}}', "b=x"]) == {"$and": [{"b": ["x"]}, {"$not": {"a": 1}}]}
    for wrong in ("year", "=x", "{", '{"a": {"$gt": null}}', "[1]"):
        with pytest.raises(ConfigError):
            where_of([wrong])


def test_both_ways(sac: Sac, library: str) -> None:
    both = sac("ask", "Where is the key?", "--both", "--json", **SHORT).json
    assert set(both) == {"question", "compressed", "text", "speedup"}
    assert set(both["speedup"]) == {"first_token", "total"}
    check_schema(both["compressed"])
    check_schema(both["text"])
    assert both["compressed"]["sources"] == both["text"]["sources"]
    timings = both["compressed"]["timings"]
    assert timings["first_token_s"] >= timings["retrieve_s"] + timings["load_s"] > 0
    expected = both["text"]["timings"]["total_s"] / timings["total_s"]
    assert both["speedup"]["total"] == pytest.approx(expected)
    table = sac("ask", "Where is the key?", "--both", **SHORT).out
    assert "time to first token" in table and "tokens attended" in table and "faster" in table
    assert (
        sac("ask", "Where?", "--both", "--text").code == sac("ask", "Where?", "--both", SAC_FIDELITY="text").code == 2
    )


@pytest.mark.parametrize(
    "flags", [("-k", "0"), ("--search", "magic"), ("--top-p", "2"), ("--placing", "odd"), ("--fidelity", "half")]
)
def test_bad_settings_are_usage_errors(sac: Sac, library: str, flags: tuple[str, str]) -> None:
    result = sac("ask", "Who?", *flags)
    assert result.code == 2 and result.err.startswith("error: ")
    assert "Traceback" not in result.err and result.err.count("\n") == 1


def test_chat_is_a_conversation(sac: Sac, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sac_rag.answer.conversation import Conversation

    turns: list[int] = []
    assembled = Conversation.assembled

    def listening(self: Conversation, *args: Any, **settings: Any) -> Any:
        turns.append(len(self))
        return assembled(self, *args, **settings)

    monkeypatch.setattr(Conversation, "assembled", listening)
    lines = (
        "/sources\nWhere is the key?\n/sources\n/text\nWho approves trips?\n/what\n"
        "/new\nWhere is the key?\n/quit\nnever\n"
    )
    result = sac("chat", stdin=lines, SAC_K="3", **SHORT)
    assert result.code == 0, result.err
    assert turns == [0, 1, 0]
    assert "/new starts afresh" in result.err and "no answer yet" in result.err and "is forgotten" in result.err
    assert "answering from plain text" in result.err
    assert result.out.count("docs/") >= 2 and "never" not in result.out
    assert sac("chat", stdin="", **SHORT).code == 0  # the end of input ends it
    assert all(word in sac("chat", "--help", COLUMNS="200").out for word in ("/new", "/sources", "/text", "/quit"))


def test_documents_cannot_steer_a_terminal(
    sac: Sac, toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.txt").write_text(
        "[bold red]loud[/bold red] [/] \x1b]0;owned\x07 \x1b[2J \u202eback \x9b31m end [link=x]"
    )
    assert sac("index", "evil.txt", **toys.environment).code == 0
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    for args in (("ask", "loud?"), ("ask", "loud?", "--both"), ("ls",), ("ls", "evil.txt"), ("info",)):
        printed = sac(*args, **SHORT).out
        assert not set(printed) & {"\x1b", "\x07", "\x9b", "\u202e"}, args
    assert "[bold red]loud[/bold red]" in sac("ls", "evil.txt", COLUMNS="200").out


def test_clean_keeps_text() -> None:
    assert console.clean("a\tb\nc é 漢 \x1b[31mred\x00\r") == "a\tb\nc é 漢 [31mred"
    assert console.one_line("a\n  b\x1b c", 4) == "a b…"


def test_an_answer_is_held_to_a_schema_of_a_file(sac: Sac, library: str) -> None:
    pytest.importorskip("llguidance", reason="the extra `tools` is not installed")
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    Path("fact.json").write_text(json.dumps(schema))
    args = ("ask", "Who approves trips?", "--schema", "fact.json", "--max-new-tokens", "40")
    answer = sac(*args, "--json", SAC_DTYPE="float32").json
    assert isinstance(json.loads(answer["answer"])["sure"], bool) and answer["sources"]
    assert sac(*args, "-q", SAC_DTYPE="float32").out.strip() == answer["answer"]
    both = sac(*args, "--both", "--json", SAC_DTYPE="float32").json
    assert all(set(json.loads(both[way]["answer"])) == {"sure"} for way in ("compressed", "text"))


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file"), ("[1]", "not an object"), ("{", "no JSON schema"), ('{"type": "x"}', "Invalid type: x")],
)
def test_what_is_no_schema_is_refused(sac: Sac, library: str, content: str | None, why: str) -> None:
    pytest.importorskip("llguidance", reason="the extra `tools` is not installed")
    if content is not None:
        Path("fact.json").write_text(content)
    result = sac("ask", "Who approves trips?", "--schema", "fact.json", **SHORT)
    assert result.code != 0 and why in result.err and result.out == ""


def test_several_answers_stand_under_their_questions(sac: Sac, library: str) -> None:
    lines = "Where is the key?\nWho approves trips?\n"
    out = sac("ask", "-", stdin=lines, **SHORT).out
    assert [line for line in out.splitlines() if line.startswith("Q ")] == [f"Q {q}" for q in lines.splitlines()]
    assert "Q " not in sac("ask", "-", "-q", stdin=lines, **SHORT).out
    both = sac("ask", "Where is the key?", "--both", **SHORT).out
    assert both.splitlines()[0].split("\t") == ["", "compressed", "text", ""]
