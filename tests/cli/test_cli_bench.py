"""`sac bench`: a rehearsal in a terminal and as JSON, and what flags mean together."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_toys import Sac, Toys


def test_a_rehearsal(sac: Sac, toys: Toys, documents: Path) -> None:
    settings = {**toys.environment, "SAC_PASSAGE_TOKENS": "64"}
    flags = ("docs", "--quick", "--only", "first,storage", "-k", "1", "--ratio", "2,5")
    found = sac("bench", *flags, "--plots", "plots", "--json", **settings)
    assert found.code == 0, found.err
    tables = found.json["tables"]
    assert {r["way"] for r in tables["first_token"]} == {"text", "2x", "5x", "full-kv"}
    assert {r["codec"] for r in tables["storage"]} == {"bf16", "int8", "int4"} and "torch" in found.json["versions"]
    assert Path("plots/first-token.svg").read_text().startswith("<svg") and "first-token.svg" in found.err
    shown = sac("bench", *flags, **settings)
    assert shown.code == 0 and "full-kv" in shown.out and "machine" in shown.out


def test_own_documents(sac: Sac, toys: Toys) -> None:
    Path("own").mkdir()
    for i in range(6):
        text = (
            f"The lamp of house {i} was kept by Ada Quill of Port Harrow until {1900 + i}, when the board paid for gas."
        )
        Path(f"own/{i}.txt").write_text(text)
    found = sac("bench", "own", "--mine", "--quick", "--ratio", "2,5", "--plots", "plots", "--json", **toys.environment)
    assert found.code == 0, found.err
    rows = found.json["tables"]["choices"]
    assert [(r["way"], r["codec"], r["passages"]) for r in rows] == [
        (way, codec, k) for way, codec in (("text", ""), ("2x", "bf16"), ("5x", "bf16")) for k in (1, 5)
    ]
    assert Path("plots/f1-by-bytes.svg").exists()


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--mine",), "name files or folders"),
        (("docs", "--mine", "--only", "first"), "leave out --only"),
        (("--codec", "int8"), "--codec is for --mine"),
        (("--only", "speed"), "no part is called 'speed'"),
        (("-k", "0"), "at least one passage"),
    ],
)
def test_what_is_refused(sac: Sac, toys: Toys, args: tuple[str, ...], why: str) -> None:
    result = sac("bench", *args, **toys.environment)
    assert result.code == 2 and why in result.err
