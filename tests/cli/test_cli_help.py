"""Help: examples everywhere and true, every flag documented, nothing heavy loaded."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_toys import Sac

from sac_cli.main import tree
from sac_cli.shell import commands_below, flag_of, settable

ROOT = tree()
HEAVY = ("torch", "transformers", "faiss", "numpy", "peft", "sentence_transformers", "click")


def walk(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for below in commands_below(command):
        yield from walk(below, (*path, below.name))


COMMANDS = {path: command for path, command in walk() if path and not commands_below(command)}


def test_the_commands_are_there() -> None:
    users = "demo index add ask chat warm serve mcp ls info rm gc recode verify repair export pack unpack"
    others = "train eval reproduce calibrate codec bench doctor models"
    assert [c.name for c in commands_below(ROOT)] == f"{users} {others}".split()
    assert {("models", n) for n in ("list", "pull", "path", "verify")} <= set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_of_a_command_has_examples(sac: Sac, path: tuple[str, ...]) -> None:
    result = sac(*path, "--help", COLUMNS="200")
    assert result.code == 0 and result.err == ""
    assert "Examples" in result.out and f"sac {' '.join(path)}" in result.out.split("Examples")[1]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_examples_use_flags_that_exist(path: tuple[str, ...]) -> None:
    for line in COMMANDS[path].epilog.replace("\\[", "[").splitlines()[2:]:
        words = shlex.split(re.split(r"\s{3,}|[|;<>]", line.strip())[0].replace('"$(', "").replace(')"', ""))
        while words and words[0] != "sac":
            words = words[1:]
        used = path if tuple(words[1 : 1 + len(path)]) == path else next(p for p in COMMANDS if p == (words[1],))
        known = {option for p in COMMANDS[used].params for option in (*p.opts, *p.secondary_opts)}
        assert {w for w in words if re.match(r"--?[a-z]", w)} <= known, line


def test_every_flag_has_help_and_an_environment_variable() -> None:
    for path, command in COMMANDS.items():
        for flag, parameter in settable(command).items():
            assert parameter.help, (path, flag)
            assert parameter.envvar == f"SAC_{flag.upper()}"


def test_the_demo_never_writes_into_the_library_of_the_environment() -> None:
    (library,) = (p for p in COMMANDS["demo",].params if p.name == "library")
    assert library.envvar is None and "--library" in library.opts


def test_one_variable_has_one_meaning_of_type() -> None:
    """SAC_SEED is read by several commands: where a flag is called the same it must take the same."""
    seen: dict[str, set[bool]] = {}
    for command in COMMANDS.values():
        for flag, parameter in settable(command).items():
            seen.setdefault(flag, set()).add(parameter.is_flag)
    assert {flag for flag, kinds in seen.items() if len(kinds) > 1} == set()


def test_settings_are_flags_with_their_documentation() -> None:
    from sac_rag.compress.backbone import LoraSpec
    from sac_rag.compress.layout import PromptLayout
    from sac_rag.config import AskConfig, IndexConfig
    from sac_rag.train.objectives import OBJECTIVES, fields_of

    wanted = [("index", IndexConfig, ""), ("ask", AskConfig, ""), ("chat", AskConfig, "")]
    for name, cls, prefix in [*wanted, ("train", LoraSpec, "lora_"), ("train", PromptLayout, "layout_")]:
        flags = settable(COMMANDS[name,])
        for field in dataclasses.fields(cls):
            assert len(flags[prefix + field.name].help) > 8, field.name
    flags = settable(COMMANDS["train",])
    for name in (field for objective in OBJECTIVES for field in fields_of(objective)):
        assert len(flags[name].help) > 8, name
    assert all(name in flags["objective"].help for name in OBJECTIVES)


def test_given_settings_make_the_dataclass_with_its_own_types() -> None:
    from sac_cli import fields, train
    from sac_rag.train.objectives import configured, fields_of

    settings = {s.name: s for s in train.TRAINING}
    told = {s.field: s.default for s in (*train.TRAINING, *train.OWN)}
    known = [{name: told[name] for name in fields_of(objective)} for objective in ("qa", "reader", "ae+lm")]
    assert known == [{**configured(o).flat(), "objective": "qa"} for o in ("qa", "reader", "ae+lm")]
    assert settings["ratios"].value(["2, 5 15"]) == settings["ratios"].value(["2", "5", "15"]) == (2.0, 5.0, 15.0)
    lora = fields.given(train.LORA, {"lora_targets": ["q_proj,v_proj"], "lora_rank": 3, "seed": 1})
    assert lora == {"targets": ("q_proj", "v_proj"), "rank": 3}


def test_help_lists_each_flag_once() -> None:
    for path, command in COMMANDS.items():
        flags = [flag_of(p) for p in command.params if flag_of(p)]
        assert len(flags) == len(set(flags)), path


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["train", "--help"], ["ask", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    script = (
        f"import sys; from sac_cli.main import run; code = run({args!r}); "
        f"print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout


def test_help_loads_what_prints_it_and_a_few_files_of_ours() -> None:
    """What --help costs is what it imports; a count holds on machines of any speed."""

    def loaded(script: str) -> list[str]:
        script += "; print('LOADED', *sorted(sys.modules))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        return done.stdout.split("LOADED ")[1].split()

    def packages(modules: list[str]) -> set[str]:
        return {m.split(".")[0] for m in modules if m[:2] != "__"} - set(sys.stdlib_module_names)

    printing = loaded("import sys, typer, typer.rich_utils; typer.rich_utils._get_rich_console().print('[b]a[/]')")
    helped = loaded("import sys; from sac_cli.main import run; run(['--help'])")
    assert packages(helped) - packages(printing) <= {"sac_cli", "sac_rag", "pygments", "attr", "markdown_it", "mdurl"}
    assert sum(m.split(".")[0] in ("sac_cli", "sac_rag") for m in helped) <= 65


def test_version(sac: Sac) -> None:
    from sac_rag import __version__

    assert sac("--version").out == f"sac {__version__}\n"


def environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'cli'}"}
