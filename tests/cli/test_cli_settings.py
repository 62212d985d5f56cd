"""Flag > environment > sac.toml or pyproject.toml > default; unknown keys are fatal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_toys import Sac

from sac_cli import main, settings
from sac_rag.errors import ConfigError


def tree(folder: Path) -> dict[str, Any]:
    return settings.defaults(main.tree(), settings.sources(folder))


def test_precedence(sac: Sac, library: str, tmp_path: Path) -> None:
    def sources(*flags: str, **environment: str) -> int:
        result = sac("ask", "Trips?", "--json", *flags, SAC_MAX_NEW_TOKENS="1", SAC_DTYPE="float32", **environment)
        assert result.code == 0, result.err
        return len(result.json["sources"])

    assert sources() == 4, "all that there are, of five"
    (tmp_path / "pyproject.toml").write_text("[tool.sac.ask]\nk = 1\n")
    assert sources() == 1
    (tmp_path / "sac.toml").write_text("[ask]\nk = 3\n")  # goes before pyproject.toml
    assert sources() == 3
    assert sources(SAC_K="2") == 2
    assert sources("-k", "1", SAC_K="2") == 1


def test_a_key_at_the_top_is_for_every_command(tmp_path: Path) -> None:
    (tmp_path / "sac.toml").write_text(
        'library = "a.lib"\nquiet = true\n[ask]\nmax-new-tokens = 7\nlibrary = "b.lib"\n'
        '[train]\nratios = [2, 5]\n[eval]\nratio = [5, 15]\nreader = "text"\n'
    )
    found = tree(tmp_path)
    assert found["quiet"] is True and found["index"]["quiet"] is True
    assert found["index"]["library"] == "a.lib" and found["ask"]["library"] == "b.lib"
    assert "library" not in found["demo"], "sample documents do not belong into one's own library"
    assert found["ask"]["max_new_tokens"] == 7
    assert found["train"]["ratios"] == [2, 5] and found["eval"]["ratio"] == [5, 15]
    assert found["eval"]["reader"] == ["text"]


def test_the_users_own_file_says_anything_and_is_the_weakest(
    sac: Sac, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'model = "owner/model"\nlibrary = "/elsewhere/x.lib"\n[rm]\nyes = true\n[index]\nsync = true\n'
        '[models.pull]\nwheelhouse = "/w"\n[ask]\nk = 4\nmin-score = 0.1\n'
    )
    monkeypatch.setenv("SAC_CONFIG", str(own))
    (tmp_path / "sac.toml").write_text("library = 'sac.lib'\n[ask]\nk = 3\n")
    found = tree(tmp_path)
    assert found["index"]["model"] == "owner/model" and found["index"]["sync"] is True
    assert found["rm"]["yes"] is True and found["models"]["pull"]["wheelhouse"] == "/w"
    assert (found["ask"]["k"], found["ask"]["min_score"], found["ask"]["library"]) == (3, 0.1, "sac.lib")
    assert sac("rm", "docs/*", SAC_CONFIG=str(own), SAC_LIBRARY=library).code == 0
    own.write_text("[rm]\nyess = true\n")
    result = sac("ls", SAC_CONFIG=str(own))
    assert result.code == 2 and "own.toml: unknown setting [rm] 'yess'. Did you mean 'yes'?" in result.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[ask]\nmax_new_token = 7\n", "Did you mean 'max_new_tokens'?"),
        ("[aks]\nk = 7\n", "Did you mean 'ask'?"),
        ("libary = 'x'\n", "Did you mean 'library'?"),
        ("[ask]\nratio = 5\n", "unknown setting [ask] 'ratio'"),
        ("ask = 5\n", "must be a table"),
        ("[library]\nx = 5\n", "not a table"),
        ("[ask\n", "cannot be read"),
    ],
)
def test_mistakes_are_fatal_and_explained(sac: Sac, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "sac.toml").write_text(content)
    with pytest.raises(ConfigError, match="sac.toml"):
        tree(tmp_path)
    result = sac("ls")
    assert result.code == 2 and said in result.err
    assert sac("--help").code == 0 and sac("ask", "--help").code == 0  # the way out stays open


def test_wrong_types_are_usage_errors(sac: Sac, tmp_path: Path) -> None:
    (tmp_path / "sac.toml").write_text("[ask]\nk = 'many'\n")
    assert sac("ask", "Who?").code == 2
    assert sac("ask", "Who?", SAC_TOP_P="much").code == 2


def test_a_broken_pyproject_is_not_ours(sac: Sac, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.other\n")
    assert tree(tmp_path)["ask"] == {}
    assert sac("ls").code == 3


def test_flags_stand_before_or_after_the_command(sac: Sac, library: str) -> None:
    for args in (("-q", "verify"), ("verify", "-q")):
        assert sac(*args).err == ""
    assert sac("verify", SAC_QUIET="1").err == ""
    assert "all is well" in sac("verify").err
