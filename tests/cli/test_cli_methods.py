"""Methods that need no adapter, by command: any model has a compressed library at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_toys import Sac, Toys


@pytest.fixture
def model(toys: Toys) -> dict[str, str]:
    """The models alone: no adapter."""
    return {name: value for name, value in toys.environment.items() if name != "SAC_ADAPTER"}


@pytest.mark.parametrize("method", ("full-kv", "kvzip", "attention-matching"))
def test_index_and_ask_without_an_adapter(method: str, sac: Sac, model: dict[str, str], documents: Path) -> None:
    ratio = () if method == "full-kv" else ("--ratio", "3")
    made = sac("index", "docs", "--method", method, *ratio, "--json", **model)
    assert made.code == 0, made.err
    info = sac("info", "--json").json["fingerprint"]
    assert (info["method"], info["ratio"]) == (method, 1.0 if method == "full-kv" else 3.0)
    answer = sac("ask", "Who keeps the keys?", "--json", "--max-new-tokens", "4", SAC_DTYPE="float32")
    assert answer.code == 0, answer.err
    assert answer.json["sources"] and answer.json["answer"] is not None
    again = sac("index", "docs", "--json", SAC_DTYPE="float32").json
    assert (again["added"], again["changed"]) == (0, 0)


def test_options_by_flag_and_file(sac: Sac, model: dict[str, str], documents: Path) -> None:
    Path("sac.toml").write_text('[index]\noption = ["even_heads=true"]\nmethod = "kvzip"\n')
    made = sac("index", "docs", "--json", **model)
    assert made.code == 0, made.err
    wrong = sac("index", "docs", "--option", "even_heads=false", **model)
    assert wrong.code != 0 and "option is ('even_heads=true',) there and ('even_heads=false',) here" in wrong.err
    unknown = sac("index", "docs", "--library", "b.lib", "--option", "even=1", **model)
    assert unknown.code != 0 and "option even of 'kvzip' is not known; it takes even_heads" in unknown.err
    malformed = sac("index", "docs", "--library", "c.lib", "--option", "even", **model)
    assert malformed.code != 0 and "write key=value" in malformed.err


def test_what_cannot_be(sac: Sac, model: dict[str, str], documents: Path) -> None:
    refused = sac("index", "docs", "--method", "full-kv", "--ratio", "4", **model)
    assert refused.code != 0 and "ratio is 4, but method 'full-kv' keeps every token" in refused.err
    adapter = sac("index", "docs", "--method", "kvzip", "--adapter", "docs", **model)
    assert adapter.code != 0 and "method 'kvzip' has nothing to train" in adapter.err
