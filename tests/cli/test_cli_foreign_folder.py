"""`sac` in a folder that somebody else filled: its files fetch nothing, skip no question and point nowhere else."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_toys import Sac, Toys

sys.path.append(str(Path(__file__).parents[1] / "security"))
sys.path.append(str(Path(__file__).parents[1] / "library"))

from test_foreign_catalog import rewritten

from sac_cli import main, settings
from sac_cli.shell import settable
from sac_rag.errors import ConfigError


def tree(folder: Path) -> dict[str, Any]:
    return settings.defaults(main.tree(), settings.sources(folder))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What the hub is asked for: (repository, whether its cache alone is)."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[tuple[str, bool]] = []

    def ask(repo: str, *_: object, local_files_only: bool = False, **__: object) -> str:
        asked.append((repo, local_files_only))
        raise LocalEntryNotFoundError("not here")

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, ask)
    return asked


@pytest.mark.parametrize(
    "content",
    [
        "[rm]\nyes = true",
        "yes = true",
        "[index]\nsync = true",
        "[verify]\nshallow = true",
        "[calibrate]\nwrite = true",
        "[demo]\nkeep = true",
        "[train]\nprocesses = 1000",
        "[eval]\nworkers = 1000",
        "[models.pull]\nwheelhouse = 'wheels'",
        "[index]\nmodel = 'owner/model'",
        "[index]\nmodel = 'owner/model@main'",
        "[eval]\nmodel = 'smolm2-135m-instruct'",
        "[index]\nembedder = 'owner/model'",
        "[train]\nbase = 'owner/model'",
        "[index]\nmodel = '/models/llama'",
        "[index]\nmodel = '~/llama'",
        "[index]\nadapter = '../adapter'",
        "[eval]\nadapter = ['mine=../adapter', 'default']",
        "[eval]\nadapter = 'default,mine=/adapter'",
        "[eval]\nfull-ft-adapter = '/adapter'",
        "[train]\nteacher = 'a/../../teacher'",
        "[train]\nfrom = '/adapter'",
        "[train]\nrecipe = '../mine.toml'",
        "[train]\nrecipe = 'link/mine.toml'",
        "[train]\noutput = '/elsewhere/out'",
        "[eval]\nresults = '..'",
        "[eval]\ndata = '/data'",
        "library = '/home/someone/private.lib'",
        "library = '../private.lib'",
        "library = 'link/private.lib'",
        'library = "sac\\u0000.lib"',
        "library = ''",
        "library = '~'",
        "library = 's3://somebody/library.lib'",
        "library = 'memory://library.lib'",
        "[ask]\nlibrary = '~someone/private.lib'",
    ],
)
@pytest.mark.parametrize("name", ["sac.toml", "pyproject.toml"])
def test_what_a_file_of_the_folder_must_not_say(sac: Sac, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "link").symlink_to("/")
    if name == "pyproject.toml":
        head, _, rest = content.partition("\n") if content.startswith("[") else ("", "", content)
        content = f"[tool.sac{'.' + head.strip('[]') if head else ''}]\n{rest}"
    (tmp_path / name).write_text(content)
    result = sac("ls")
    assert result.code == 2 and result.out == ""
    assert f"{name}: " in result.err and "may be somebody else's" in result.err and "SAC_" in result.err
    assert sac("--help").code == 0


def test_what_it_may_say(sac: Sac, library: str, toys: Toys, tmp_path: Path) -> None:
    shutil.copytree(toys.base, tmp_path / "llama")
    (tmp_path / "sac.toml").write_text(
        "library = './sac.lib'\nquiet = true\n[ask]\nk = 2\nfidelity = 'text'\nmax-new-tokens = 1\n"
        "[index]\nmodel = 'llama'\nembedder = 'all-minilm-l6-v2'\nadapter = 'default'\nratio = 3\n"
        "[train]\noutput = 'runs/a'\nlearning-rate = 0.1\nratios = [2, 5]\nbase = 'smollm2-135m-instruct'\n"
        "recipe = 'default'\ndistractor-share = 0.2\nfuture-from = -8.0\n"
        "[eval]\nadapter = ['default', 'new=runs/a']\n"
    )
    found = tree(tmp_path)
    assert found["index"]["model"] == "llama" and found["train"]["output"] == "runs/a"
    assert found["train"]["recipe"] == "default" and found["train"]["distractor_share"] == 0.2
    assert found["eval"]["adapter"] == ["default", "new=runs/a"]
    result = sac("ask", "Trips?", "--json", SAC_DTYPE="float32")
    assert result.code == 0, result.err
    assert len(result.json["sources"]) == 2 and result.json["fidelity"] == "text"


def test_every_flag_is_free_a_place_a_model_or_not_for_such_files() -> None:
    """A new flag is none of them until somebody decides so, and no name in the lists is of a flag that is gone."""
    root = main.tree()

    def flags(command: Any) -> set[str]:
        return {*settable(command)}.union(*map(flags, getattr(command, "commands", {}).values()))

    refused = {"yes", "sync", "shallow", "write", "keep", "copy", "processes", "workers", "wheelhouse"}
    refused |= {"serve", "sha256", "engine", "dense", "schema"}
    refused |= {"host", "port", "keys", "folder", "open_to_all", "read_only"}  # who is let in to what
    refused |= {"otel", "otel_texts"}  # who is told of it
    refused |= {"requests_per_minute", "concurrent", "max_tokens", "body_bytes", "timeout", "grace"}
    refused |= {"connections", "patience"}
    refused |= {"file_bytes", "text_chars", "memory_bytes", "cpu_s", "wall_s"}  # limits on what lies in it
    groups = [settings.free(), settings.PLACES, set(settings.MODELS), refused]
    assert set().union(*groups) == flags(root)
    assert sum(map(len, groups)) == len(flags(root))


def test_a_pattern_is_asked_about_in_such_a_folder(sac: Sac, library: str, tmp_path: Path) -> None:
    (tmp_path / "sac.toml").write_text("[rm]\nyes = true\n")
    assert sac("rm", "docs/*").code == 2
    (tmp_path / "sac.toml").unlink()
    assert "add --yes" in sac("rm", "docs/*").err
    assert len(sac("ls", "--json").json["documents"]) == 2


@pytest.mark.parametrize("kind", ["zero", "fifo", "folder", "huge", "sparse", "deep", "loop", "binary"])
@pytest.mark.parametrize("name", ["sac.toml", "own.toml", "pyproject.toml"])
def test_files_that_are_no_settings(sac: Sac, tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        path.write_text("# long\n" * 1_000_000)
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 1 << 40)
    elif kind == "deep":
        path.write_text("x = " + "[" * 100_000 + "]" * 100_000)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(b"\xff\xfe\x00")
    result = sac("ls", SAC_CONFIG=str(tmp_path / "own.toml"))
    if name == "pyproject.toml":  # not ours to judge
        assert result.code == 3
        return
    assert result.code == 2, result.err
    assert f"{name} cannot be read" in result.err and result.err.count("\n") == 1


def fingerprint(library: str, **changes: object) -> None:
    import json

    with sqlite3.connect(Path(library) / "catalog.sqlite") as db:
        stored = json.loads(db.execute("SELECT fingerprint FROM head").fetchone()[0])
    db.close()
    rewritten(Path(library), "head", fingerprint=json.dumps({**stored, **changes}, sort_keys=True))


@pytest.mark.parametrize("field", ["model", "embedder"])
@pytest.mark.parametrize("args", [("ask", "Who?"), ("chat",), ("add", "docs/keys.txt"), ("index", "docs"), ("gc",)])
def test_a_library_fetches_no_model(
    sac: Sac, library: str, no_network: list[tuple[str, bool]], field: str, args: tuple[str, ...]
) -> None:
    fingerprint(library, **{field: "evil-owner/model"})
    result = sac(*args)
    if args == ("gc",):  # which needs none
        assert result.code == 0 and no_network == []
        return
    assert result.code == 1, result.err
    assert "not fetched because a library" in result.err and "sac models pull evil-owner/model" in result.err
    assert no_network and all(asked == ("evil-owner/model", True) for asked in no_network)


def test_a_model_that_the_user_names_is_fetched(sac: Sac, library: str, no_network: list[tuple[str, bool]]) -> None:
    fingerprint(library, model="owner/model")
    sac("index", "docs", "--model", "owner/model")
    sac("index", "docs", SAC_MODEL="owner/model")
    assert no_network == [("owner/model", False)] * 2
    no_network.clear()
    sac("index", "docs", "--ratio", "5")  # names another thing
    assert no_network == [("owner/model", True)]
    no_network.clear()
    sac("index", "docs", "--library", "new.lib", "--model", "owner/other")
    sac("models", "pull", "owner/third")
    assert no_network == [("owner/other", False), ("owner/third", False)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ratio": "5"}, "ratio is '5' (str)"),
        ({"ratio": True}, "ratio is 'True' (bool)"),
        ({"ratio": -1}, "ratio is -1"),
        ({"passage_tokens": 64.5}, "passage_tokens"),
        ({"passage_tokens": [64]}, "passage_tokens"),
        ({"overlap": None}, "overlap"),
        ({"model": 5}, "model is '5' (int)"),
        ({"model": ["a"]}, "model"),
        ({"model": {}}, "model"),
        ({"adapter": None}, "adapter is 'None'"),
        ({"embedder": 1.5}, "embedder"),
        ({"method": "os.system"}, "method"),
        ({"method": 3}, "method is '3' (int)"),
    ],
)
def test_fingerprints_of_wrong_types(sac: Sac, library: str, changes: dict[str, object], said: str) -> None:
    fingerprint(library, **changes)
    for args in (("ask", "Who?"), ("index", "docs"), ("index", "docs", "--ratio", "5")):
        result = sac(*args)
        assert result.code in (2, 3) and said in result.err, result.err
        assert "Error:" not in result.err and result.err.count("\n") == 1
    assert sac("ls").code == 0


def test_an_adapter_fetches_no_model(sac: Sac, toys: Toys, tmp_path: Path, no_network: list[tuple[str, bool]]) -> None:
    import json

    adapter = Path(shutil.copytree(toys.adapter, tmp_path / "adapter"))
    card = json.loads((adapter / "card.json").read_text())
    (adapter / "card.json").write_text(json.dumps({**card, "base": "evil-owner/model"}))
    (tmp_path / "text.txt").write_text("word " * 500)
    result = sac("train", "text.txt", "--objective", "lm", "--from", "adapter", "-o", "out", "--processes", "1")
    assert result.code == 1 and "sac models pull evil-owner/model" in result.err
    assert no_network == [("evil-owner/model", True)]


def test_settings_are_read_once_and_from_one_file(tmp_path: Path) -> None:
    (tmp_path / "sac.toml").write_text("[ask]\nk = 2\n")
    (tmp_path / "pyproject.toml").write_text("[tool.sac.rm]\nyes = true\n")  # gives way to sac.toml, whole
    assert tree(tmp_path)["ask"] == {"k": 2}
    (tmp_path / "sac.toml").unlink()
    with pytest.raises(ConfigError, match=r"\[tool.sac\] of pyproject.toml: 'yes'"):
        tree(tmp_path)
