"""Imports point one way, and what must stay in one file or out of the repository altogether does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELLS = {
    "sac_cli": ROOT / "cli/sac_cli",
    "langchain_sac": ROOT / "integrations/langchain-sac/langchain_sac",
    "llama_index": ROOT / "integrations/llama-index-sac/llama_index",
}

BASE = {"errors", "config", "families", "records", "registry", "foreign", "places", "bm25"}
WRITING = BASE | {"text", "compress"}
READING = WRITING | {"models", "library", "answer"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "records": set(),
    "foreign": set(),
    "families": {"errors"},
    "config": {"errors"},
    "registry": {"errors"},
    "places": {"errors"},
    "bm25": set(),
    "processes": {"errors"},
    "samples": set(),
    "text": BASE,
    "compress": BASE,
    "models": BASE,  # a side room: it says where weights lie, and knows of nothing that uses them
    "library": BASE | {"compress"},
    "answer": WRITING | {"models", "library"},
    "indexing": WRITING | {"library", "processes"},  # it is handed what compresses and embeds
    "maker": READING | {"indexing", "processes"},
    "mending": READING | {"indexing"},
    "remote": BASE | {"models", "library"},
    "pipeline": READING | {"indexing", "maker", "mending", "remote"},
    "engines": BASE | {"compress", "answer", "pipeline"},  # memories for the engines of others
    "doctor": BASE | {"models", "library", "pipeline"},
    "warm": BASE | {"models", "answer", "pipeline"},  # a shell, too
    "serve": BASE | {"library", "answer", "indexing", "pipeline", "remote"},  # a shell: held to one door below
    "train": WRITING | {"models"},  # it makes adapters; answering with them is not its business
    # it measures what the others make
    "evaluate": READING | {"indexing", "pipeline", "warm", "processes", "train", "samples"},
    "reproduce": READING | {"train", "evaluate"},  # it trains and measures, as a user would
}
"""Room of sac_rag -> the rooms it may import, besides itself."""

MODULE = re.compile(r"sac_rag(?:\.\w+)+(?=:\w+$|$)")


def sources(*folders: Path) -> list[Path]:
    texts = ROOT / "sac_rag/samples/documents"
    found = sorted(p for folder in folders for p in folder.rglob("*.py") if texts not in p.parents)
    assert found
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def imported(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """(node, dotted name) of everything imported: by statement at any depth, or by a "module:Class" registry entry."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{place(path, node)}: relative import; write the whole name"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (found := MODULE.match(node.value)):
            yield node, found[0]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "sac_rag").with_suffix("").parts[0]


def test_every_room_has_its_place() -> None:
    rooms = {room_of(path) for path in sources(ROOT / "sac_rag")} - {"__init__"}
    assert rooms <= set(MAY_IMPORT), f"say in MAY_IMPORT what {sorted(rooms - set(MAY_IMPORT))} may import"


def test_imports_point_one_way() -> None:
    wrong = []
    for path in sources(ROOT / "sac_rag"):
        room = room_of(path)
        if room == "__init__":  # the public names, from everywhere, at first use
            continue
        for node, name in imported(path):
            top, _, rest = name.partition(".")
            if top in SHELLS or top in ("typer", "langchain_core"):
                wrong.append(f"{place(path, node)}: {room} imports {name}, which only a shell may")
            elif top == "sac_rag":
                other = rest.partition(".")[0]
                if other and other not in MAY_IMPORT[room] | {room, "__version__"}:
                    wrong.append(f"{place(path, node)}: {room} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_the_order_of_rooms_has_no_circle() -> None:
    left = {room: set(needs) for room, needs in MAY_IMPORT.items()}
    while left:
        free = {room for room, needs in left.items() if not needs & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {room: needs for room, needs in left.items() if room not in free}


def test_shells_do_not_import_each_other() -> None:
    wrong = []
    for shell, folder in SHELLS.items():
        others = set(SHELLS) - {shell}
        if shell == "llama_index":  # a namespace shared with llama-index-core
            others -= {"llama_index"}
        for path in sources(folder):
            wrong += [f"{place(path, n)}: {name}" for n, name in imported(path) if name.partition(".")[0] in others]
    assert not wrong, "\n".join(wrong)


def inside(path: Path) -> Iterator[str]:
    """Ways in which a shell reaches past what an open library offers."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and (node.attr == "engine" or node.attr in PRIVATE):
            yield f"{place(path, node)}: .{node.attr}"
    for node, name in imported(path):
        if name.startswith(("sac_rag.answer.engine", "sac_rag.answer.service", "sac_rag.compress")):
            yield f"{place(path, node)}: imports {name}"


PRIVATE = {"_loose", "_tagger", "_memory_source", "_offered", "_view", "_writer"}


def test_shells_have_one_door() -> None:
    """They ask a SacRag (`answer/serving.py`): how it is answered is none of their business."""
    wrong = []
    for shell, folder in SHELLS.items():
        training = {"eval.py", "train.py", "calibrate.py", "models.py"} if shell == "sac_cli" else set()
        wrong += [w for path in sources(folder) if path.name not in training for w in inside(path)]
    wrong += [w for path in sources(ROOT / "sac_rag/serve", ROOT / "sac_rag/warm") for w in inside(path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        "rag.engine.method.backbone.tokens(text)",
        "with self._sac.rag.engine.busy(): pass",
        "from sac_rag.answer.service import Service",
        "import sac_rag.compress.backbone",
        "rag._loose.get(i)",
    ],
)
def test_the_door_is_seen_to_be_passed_by(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "bad.py").write_text(code)
    assert list(inside(tmp_path / "bad.py"))


def test_namespace_folders_hold_no_init() -> None:
    folder = SHELLS["llama_index"]
    assert not [p for p in (folder, *folder.iterdir()) if (p / "__init__.py").exists()]


def test_only_the_backbone_knows_llama_internals() -> None:
    """The layers of a model appear in one file, peft in one, and transformers' cache classes where memories are handed
    to its own `generate`."""
    wrong = []
    for path in sources(ROOT / "sac_rag", *SHELLS.values()):
        backbone, bridge = (path == ROOT / f"sac_rag/{p}.py" for p in ("compress/backbone", "engines/transformers"))
        for node, name in imported(path):
            top, last = name.partition(".")[0], name.rpartition(".")[2]
            cache_class = top == "transformers" and (last.endswith("Cache") or "cache_utils" in name)
            if (top == "peft" and path != ROOT / "sac_rag/compress/lora.py") or (cache_class and not bridge):
                wrong.append(f"{place(path, node)}: imports {name}")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr == "layers" and not backbone:
                wrong.append(f"{place(path, node)}: touches .layers (of an AnchorKV: use counts.shape[0])")
    assert not wrong, "\n".join(wrong)


METHODS = "sac_rag.compress.methods"


def test_nobody_asks_for_a_concrete_method() -> None:
    """What differs between methods is an attribute of `Method`: outside their folder only it and the table appear."""
    wrong = []
    for path in sources(ROOT / "sac_rag", *SHELLS.values()):
        if path.is_relative_to(ROOT / "sac_rag/compress/methods"):
            continue
        for node, name in imported(path):
            if name.startswith(f"{METHODS}.") and not name.startswith((f"{METHODS}.METHODS", f"{METHODS}.base")):
                wrong.append(f"{place(path, node)}: {name}")
    assert not wrong, "\n".join(wrong)


def test_placing_has_one_owner() -> None:
    """A policy is asked; names of positions and orders are compared in its own file alone."""
    names = {"source", "packed", "best-last", "best-first"}
    wrong = []
    for path in sources(ROOT / "sac_rag", *SHELLS.values()):
        if path == ROOT / "sac_rag/compress/placing.py":
            continue
        for node in (n for n in ast.walk(tree(path)) if isinstance(n, ast.Compare)):
            compared = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            wrong += [f"{place(path, node)}: compares {name!r}" for name in compared & names]
    assert not wrong, "\n".join(wrong)


UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    ("torch", "load"),
    ("torch", "save"),
    ("yaml", "load"),
    ("yaml", "load_all"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("pandas", "read_pickle"),
}
UNSAFE_ARGUMENTS = {"allow_pickle", "trust_remote_code"}


def hazards(path: Path) -> Iterator[str]:
    """Ways in which a file could run code that it was given as data."""
    aliases: dict[str, str] = {}
    for node, name in imported(path):
        top, _, rest = name.partition(".")
        if top in UNPICKLERS:
            yield f"{place(path, node)}: imports {top}"
        if (top, rest) in UNSAFE_CALLS:
            yield f"{place(path, node)}: imports {name}"
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = aliases.get(node.value.id, node.value.id)
            if (owner, node.attr) in UNSAFE_CALLS:
                yield f"{place(path, node)}: {owner}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg in UNSAFE_ARGUMENTS:
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield f"{place(path, node.value)}: {node.arg}"
        elif isinstance(node, ast.keyword) and node.arg == "weights_only":
            yield f"{place(path, node.value)}: weights_only (use safetensors)"


def test_nothing_is_ever_unpickled() -> None:
    wrong = [w for path in sources(ROOT / "sac_rag", *SHELLS.values()) for w in hazards(path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import cloudpickle as c",
        "from torch import load",
        "import torch as t\nt.load(path)",
        "import yaml\nyaml.load(text)",
        "numpy.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
    ],
)
def test_the_ban_sees_what_it_bans(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "bad.py").write_text(code)
    assert list(hazards(tmp_path / "bad.py"))


@pytest.mark.parametrize(
    "module", ["sac_rag", "sac_rag.errors", "sac_rag.config", "sac_rag.records", "sac_rag.registry", "sac_cli.main"]
)
def test_importing_is_light(module: str) -> None:
    heavy = "torch transformers tokenizers peft numpy faiss huggingface_hub langchain_core llama_index"
    code = f"import sys, {module}; print(*(set({heavy!r}.split()) & set(sys.modules)))"
    path = [str(ROOT), str(ROOT / "cli")]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout.split(), run.stderr) == (0, [], "")


def test_public_names_resolve() -> None:
    import sac_rag

    assert {name for name in sac_rag.__all__ if getattr(sac_rag, name).__name__ == name} == set(sac_rag.__all__)
