"""The counts in the README are those of the standard suites of this very run, on tiny models and on the default one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import DESELECTED, OUTCOMES

README = Path(__file__).resolve().parents[3] / "integrations/langchain-sac/README.md"
SUITES = {
    "TestChatModelUnit": "ChatModelUnitTests",
    "TestChatModel": "ChatModelIntegrationTests",
    "TestRetriever": "RetrieversIntegrationTests",
    "TestVectorStore": "VectorStoreIntegrationTests",
    "TestEmbeddingsUnit": "EmbeddingsUnitTests",
    "TestEmbeddings": "EmbeddingsIntegrationTests",
}


MODELS = {"test_standard": "tiny models", "test_real_model": "default model"}


def printed(model: str) -> dict[str, tuple[int, int, int]]:
    """Suite -> (passed, skipped, expected to fail) on these models, as the README says."""
    line = r"^\| `(\w+Tests)`(?:, ([\w ]+))? \| (\d+) \| (\d+) \| (\d+) \|$"
    rows = re.findall(line, README.read_text("utf-8"), re.M)
    return {name: (int(a), int(b), int(c)) for name, on, a, b, c in rows if on in ("", MODELS[model])}


@pytest.mark.parametrize("model", MODELS)
def test_every_suite_is_printed(model: str) -> None:
    assert list(printed(model)) == list(SUITES.values())


@pytest.mark.parametrize("model", MODELS)
def test_counts_are_those_of_this_run(model: str, request: pytest.FixtureRequest) -> None:
    if any("::" in argument for argument in request.config.args):
        pytest.skip("single tests were chosen")
    ran = {n: OUTCOMES[f"{model}::{n}"] for n in SUITES if f"{model}::{n}" in OUTCOMES}
    ran = {n: c for n, c in ran.items() if f"{model}::{n}" not in DESELECTED and set(c) != {"skipped"}}
    if not ran:
        pytest.skip(f"{model}.py did not run, or found no model")
    for name, count in ran.items():
        counted = (count["passed"], count["skipped"], count["xfailed"])
        assert counted == printed(model)[SUITES[name]], f"{SUITES[name]}: {dict(count)}"
