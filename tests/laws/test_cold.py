"""What a cold process imports: no library that takes longer to load than an answer takes to make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HEAVY = ("peft", "transformers.models", "transformers.modeling_utils", "torch._dynamo", "torch._inductor", "sympy.core")
"""What a question must not import, once its model is known to the cache and its library to the gate."""
NOT_FOR_LISTS = (
    *("torch", "transformers", "tokenizers", "huggingface_hub", "peft", "sac_rag.compress.backbone"),
    *("pydantic", "rich", "bm25s", "scipy", "statistics", "sac_cli.train", "sac_cli.serve", "sac_rag.train"),
)
"""What a look into a catalog must not import."""
NOT_WITHOUT_CHANGE = ("numpy", "faiss")
"""What it must not import where it changes nothing."""
NOT_FOR_A_WARM_ANSWER = (*NOT_FOR_LISTS, *NOT_WITHOUT_CHANGE, "sqlite3", "sac_rag.library")
"""What asking a warm process must not import."""
ASK = """
from sac_rag import AskConfig, SacRag
from sac_rag.answer.conversation import Conversation
with SacRag.open({library!r}, dtype="float32") as rag:
    print(rag.ask("Who approves trips?", AskConfig(max_new_tokens=3)).text)
    talk = Conversation()
    for text in (False, True):
        rag.ask("And who else?", AskConfig(max_new_tokens=2), text=text, conversation=talk)
"""


def loaded(code: str, environment: dict[str, str]) -> set[str]:
    """The modules that a process of its own has after running this code."""
    code = f"{code}\nimport sys, json; print('MODULES', json.dumps(sorted(sys.modules)))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment, "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.rpartition("MODULES ")[2]))


def among(modules: set[str], names: tuple[str, ...]) -> list[str]:
    return sorted(m for m in modules if any(m == name or m.startswith(f"{name}.") for name in names))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("cold")
    return {"SAC_CACHE": str(root / "cache"), "SAC_CONFIG": str(root / "none.toml"), "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def library(
    environment: dict[str, str],
    tiny_base: Path,
    tiny_adapter: Path,
    tiny_embedder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """A library that was indexed and asked once before, by other processes."""
    folder = tmp_path_factory.mktemp("cold-library")
    for number in range(3):
        (folder / f"trips{number}.md").write_text(f"Trips above {number} euros are approved by Ada Quill.\n" * 9)
    path, files = str(folder / "lib"), [str(p) for p in sorted(folder.glob("*.md"))]
    names = {"model": str(tiny_base), "adapter": str(tiny_adapter), "embedder": str(tiny_embedder)}
    code = (
        "from sac_rag import IndexConfig, SacRag\n"
        f"config = IndexConfig(**{names!r}, passage_tokens=128)\n"
        f"SacRag.index({files!r}, {path!r}, config, dtype='float32').close()"
    )
    loaded(code + ASK.format(library=path), environment)
    return path


def test_a_question_imports_no_modelling_code(library: str, environment: dict[str, str]) -> None:
    modules = loaded(ASK.format(library=library), environment)
    assert "torch" in modules and not among(modules, (*HEAVY, "bm25s", "scipy"))


def test_a_question_makes_no_encoder(library: str, environment: dict[str, str]) -> None:
    """The LoRA twin is made when something is compressed, which leaves answers as they are."""
    code = ASK.format(library=library) + (
        "    backbone = rag.engine.method.backbone\n"
        "    assert backbone.lora and 'encoder' not in vars(backbone)\n"
        "    before = rag.ask('Who approves trips?', AskConfig(max_new_tokens=3)).text\n"
        "    assert rag.engine.compress(['Trips are approved by Ada.'], 5.0)[0].keys.isfinite().all()\n"
        "    assert 'encoder' in vars(backbone)\n"
        "    assert rag.ask('Who approves trips?', AskConfig(max_new_tokens=3)).text == before\n"
    )
    loaded(code, environment)


def test_sac_ask_imports_no_modelling_code(library: str, environment: dict[str, str]) -> None:
    words = ["ask", "Who approves trips?", "--library", library, "--dtype", "float32", "--max-new-tokens", "2"]
    modules = loaded(f"from sac_cli.main import run\nassert run({words!r}) == 0", environment)
    assert "torch" in modules and not among(modules, (*HEAVY, "transformers"))


@pytest.mark.parametrize(
    "words", [["ls"], ["ls", "*trips0.md"], ["info"], ["info", "--json"], ["rm", "*trips2.md", "--yes"]]
)
def test_looking_into_a_library_imports_no_model(library: str, environment: dict[str, str], words: list[str]) -> None:
    words = [*words, "--library", library]
    modules = loaded(f"from sac_cli.main import run\nassert run({words!r}) == 0", environment)
    assert "sac_rag.library.library" in modules and not among(modules, NOT_FOR_LISTS)
    assert words[0] == "rm" or not among(modules, NOT_WITHOUT_CHANGE)


def test_asking_a_warm_process_imports_next_to_nothing(library: str, environment: dict[str, str]) -> None:
    """In place of the warm process stands a socket that answers at once."""
    code = f"""
import dataclasses, json, socket, threading
from pathlib import Path
from sac_rag.records import Answer, Timings, Usage
from sac_rag.warm.place import socket_of
path = socket_of({library!r}, "auto", "auto", make=True)
path.unlink(missing_ok=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(path))
listener.listen()

def serve():
    listener.accept()[0].close()  # whether somebody listens
    connection = listener.accept()[0]
    connection.makefile("rb").readline()
    answer = dataclasses.asdict(Answer("Ada Quill", (), Usage(1, 1, 1, 1), Timings(0.0, 0.0, 0.0, 0.0)))
    for event in ({{"pid": 1}}, {{"piece": "Ada Quill"}}, {{"answer": answer}}):
        connection.sendall(json.dumps(event).encode() + b"\\n")

threading.Thread(target=serve, daemon=True).start()
from sac_cli.main import run
assert run(["ask", "Who approves trips?", "--library", {library!r}]) == 0
"""
    with tempfile.TemporaryDirectory(prefix="sac-") as runtime:  # short, as paths of sockets are
        modules = loaded(code, {**environment, "XDG_RUNTIME_DIR": runtime})
    assert "sac_rag.warm.client" in modules and not among(modules, NOT_FOR_A_WARM_ANSWER)


def test_the_first_question_of_a_machine_is_answered_all_the_same(
    library: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """Nothing is noted yet: transformers says how the model is read, and is the reference of the gate."""
    modules = loaded(ASK.format(library=library), {**environment, "SAC_CACHE": str(tmp_path / "cache")})
    assert among(modules, ("transformers.models.llama",)) and not among(modules, ("peft",))
