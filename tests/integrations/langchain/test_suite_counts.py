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


def printed() -> dict[str, tuple[int, int, int]]:
    """Suite -> (passed, skipped, expected to fail) as the README says."""
    rows = re.findall(r"^\| `(\w+Tests)` \| (\d+) \| (\d+) \| (\d+) \|$", README.read_text("utf-8"), re.M)
    return {name: (int(a), int(b), int(c)) for name, a, b, c in rows}


def test_every_suite_is_printed() -> None:
    assert list(printed()) == list(SUITES.values())


@pytest.mark.parametrize("model", ["test_standard", "test_real_model"])
def test_counts_are_those_of_this_run(model: str, request: pytest.FixtureRequest) -> None:
    if any("::" in argument for argument in request.config.args):
        pytest.skip("single tests were chosen")
    ran = {n: OUTCOMES[f"{model}::{n}"] for n in SUITES if f"{model}::{n}" in OUTCOMES}
    ran = {n: c for n, c in ran.items() if f"{model}::{n}" not in DESELECTED and set(c) != {"skipped"}}
    if not ran:
        pytest.skip(f"{model}.py did not run, or found no model")
    for name, count in ran.items():
        counted = (count["passed"], count["skipped"], count["xfailed"])
        assert counted == printed()[SUITES[name]], f"{SUITES[name]}: {dict(count)}"
