"""docs/reference/: every setting, command, public name and registered name, out of the code itself.

`PYTHONPATH=. python scripts/reference.py` writes the pages; a test keeps them and the code alike.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sac_cli.main import tree
from sac_cli.shell import commands_below
from sac_rag import __all__ as public
from sac_rag import errors
from sac_rag.registry import Registry

PAGES = Path(__file__).resolve().parents[1] / "docs/reference"
OURS = re.compile(r"sac_rag|langchain_sac|llama_index\.\w+\.sac\b")
MADE = "Generated from the code by `python scripts/reference.py`; a test keeps the two alike.\n"
LLAMA_INDEX = "llms retrievers response_synthesizers postprocessor vector_stores embeddings ingestion schema".split()
WIDTH = 100

SETTINGS = {
    "sac_rag.config:IndexConfig": "`SacRag.index(paths, library, IndexConfig(…))`, `sac index`",
    "sac_rag.config:ReadConfig": "`SacRag.index(…, reading=ReadConfig(…))`, `sac index`, `sac add`",
    "sac_rag.config:AskConfig": "`rag.ask(question, AskConfig(…))` or `rag.ask(question, k=3)`, `sac ask`",
    "sac_rag.serve.settings:ServeConfig": "`sac serve`",
    "sac_rag.train.config:TrainConfig": "`sac train`, for every objective",
    "sac_rag.train.objectives.base:ReadingSettings": "`sac train`, all objectives but `salience`",
    "sac_rag.train.objectives.questions:QuestionSettings": "`--objective qa`, `summarise`, `budget`, `reader`",
    "sac_rag.train.objectives.reading:ReaderSettings": "`--objective reader`",
    "sac_rag.train.objectives.texts:BothSettings": "`--objective ae+lm`",
    "sac_rag.compress.backbone:LoraSpec": "`sac train --lora-…`",
    "sac_rag.compress.layout:PromptLayout": "`sac train --layout-…`",
    "sac_rag.compress.placing:Placing": "`sac train --placing-…`",
}
"""Dataclasses of settings, and where each is given."""

REGISTRIES = {
    "sac_rag.compress.methods:METHODS": "Compression methods: `--method NAME`, options by `--option KEY=VALUE`",
    "sac_rag.compress.selectors:SELECTORS": "Anchor selectors: `--option selector=NAME` of `sac train`",
    "sac_rag.compress.budgets:BUDGETS": "Budgets of heads: `--option budget=NAME` of `sac train`",
    "sac_rag.compress.placing:PLACINGS": "Placings: `--placing NAME`",
    "sac_rag.library.codecs:CODECS": "Codecs: `--codec NAME`, `sac recode NAME`",
    "sac_rag.train.objectives:OBJECTIVES": "Objectives of training: `sac train --objective NAME`",
    "sac_rag.evaluate.readers:READERS": "Readers of an evaluation: `sac eval --reader NAME`",
}


def cell(text: object) -> str:
    """A text for a table, in which Markdown means nothing outside of backticks."""
    parts = " ".join(str(text).split()).split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*\[\]|])", r"\\\1", parts[i].replace("<", "&lt;"))
    return "`".join(p.replace("|", "\\|") if i % 2 else p for i, p in enumerate(parts))


def code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


def table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(cell, row))} |"
    yield ""


def prose(doc: str | None) -> Iterator[str]:
    """The paragraphs of a docstring."""
    for paragraph in inspect.cleandoc(doc or "").split("\n\n"):
        yield from (*textwrap.wrap(" ".join(paragraph.split()).replace("<", "&lt;"), 120, break_long_words=False), "")


def load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


class Field(NamedTuple):
    name: str
    kind: str
    default: str
    doc: str


def fields_of(cls: type) -> Iterator[Field]:
    """The documented fields that a class itself declares: of a dataclass, or of pydantic."""
    (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body)  # type: ignore[attr-defined]
    module = vars(importlib.import_module(cls.__module__))
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        name, value, doc = node.target.id, node.value, ""
        if name.startswith("_") or "ClassVar" in ast.unparse(node.annotation):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            doc = str(after.value.value)
        if isinstance(value, ast.Call):  # field(default_factory=dict), Field(default=256, description="…")
            given = {k.arg: k.value for k in value.keywords}
            if (said := given.get("description")) is not None:
                doc = ast.literal_eval(said)
            made = given.get("default_factory")
            value = given.get("default")
            if isinstance(made, ast.Lambda):
                value = made.body
            elif made is not None:
                value = ast.Call(made, [], [])
            default = ast.unparse(value) if value is not None else ""
        else:
            default = ast.unparse(value) if value is not None else ""
        if isinstance(module.get(default), str | int | float):
            default = repr(module[default])
        yield Field(name, ast.unparse(node.annotation), default, doc)


def field_table(cls: type) -> Iterator[str]:
    rows = [(code(f.name), code(f.kind), code(f.default), f.doc) for f in fields_of(cls)]
    if rows:
        yield from table(("field", "type", "default", "meaning"), rows)


def settings() -> Iterator[str]:
    yield "# Settings\n"
    yield MADE
    yield "Fields of frozen dataclasses. On the command line a field is the flag of its name (`passage_tokens` is"
    yield "`--passage-tokens`), in the environment `SAC_PASSAGE_TOKENS`:"
    yield "[the command line](../how-to/command-line.md).\n"
    for place, where in SETTINGS.items():
        cls = load(place)
        yield f"## {cls.__name__}\n"
        yield from prose(cls.__doc__)
        yield f"{where[0].upper()}{where[1:]}. Import it from `{cls.__module__}`.\n"
        yield from field_table(cls)


_DEFAULT = re.compile(r"\s*\[dim\]\\\[default: (.*)\]\[/dim\]$")


def unmarked(text: str) -> str:
    """A text of a help page without rich's markup."""
    return re.sub(r"(?<!\\)\[/?(?:bold|dim)\]", "", text).replace("\\[", "[")


def option_row(option: Any) -> tuple[str, str, str]:
    names = ", ".join(sorted(option.opts, key=len))
    names += "".join(f", {name}" for name in option.secondary_opts)
    shown = _DEFAULT.search(option.help or "")
    if shown:
        default = unmarked(shown[1])
    else:
        given = option.default
        default = "" if not isinstance(given, str | int | float | list) or given is False else str(given)
        default = ", ".join(map(str, given)) if isinstance(given, list) else default
    required = " Required." if option.required else ""
    return code(names), code(default), unmarked(_DEFAULT.sub("", option.help or "")) + required


GLOBAL = {"quiet", "verbose", "no_color", "help"}
TYPERS = {"install_completion", "show_completion"}
"""Flags whose words are not ours, and change with a version."""


def command(found: Any, path: str) -> Iterator[str]:
    yield f"## {path}\n"
    yield from prose(unmarked(found.help or ""))
    below = list(commands_below(found))
    if below:
        for inner in below:
            yield from command(inner, f"{path} {inner.name}")
        return
    arguments = [p for p in found.params if p.param_type_name == "argument"]
    if arguments:
        rows = [(code(p.metavar or p.name.upper()), p.help or "") for p in arguments]
        yield from table(("argument", "meaning"), rows)
    panels: dict[str, list[tuple[str, str, str]]] = {}
    for option in found.params:
        if option.param_type_name == "option" and option.name not in GLOBAL:
            panels.setdefault(option.rich_help_panel or "Options", []).append(option_row(option))
    for panel, rows in panels.items():
        yield from table((panel if panel != "Options" else "flag", "default", "meaning"), rows)
    _, _, lines = unmarked(found.epilog or "").partition("\n\n")
    yield f"```text\n{textwrap.dedent(lines)}\n```\n"


def commands() -> Iterator[str]:
    yield "# Commands\n"
    yield MADE
    root = tree()
    yield "Every command also takes `--help` and the first three of these. After `sac --install-completion` Tab"
    yield "completes commands and flags.\n"
    every = [p for p in root.params if p.name not in TYPERS]  # type: ignore[attr-defined]
    yield from table(("flag", "default", "meaning"), map(option_row, every))
    yield "How flags, environment and files go together, and what exit codes mean:"
    yield "[the command line](../how-to/command-line.md).\n"
    for found in commands_below(root):
        yield from command(found, f"sac {found.name}")


class Bare(str):
    """What stands in a signature as it is."""

    __repr__ = str.__str__


def signature(function: Callable[..., Any], name: str, *, bound: bool) -> str:
    """The call as the source has it; defaults that are functions are left out."""
    found = inspect.signature(function)
    parameters = [
        p.replace(
            annotation=Bare(p.annotation) if isinstance(p.annotation, str) else p.annotation,
            default=Bare("…") if inspect.isfunction(p.default) else p.default,
        )
        for p in list(found.parameters.values())[bound:]
    ]
    back = found.return_annotation
    whole = found.replace(parameters=parameters, return_annotation=Bare(back) if isinstance(back, str) else back)
    line = f"{name}{whole}"
    if len(line) <= WIDTH:
        return line
    tail = line.rpartition(")")[2]
    rows, kind = [], None
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and kind not in (p.KEYWORD_ONLY, p.VAR_POSITIONAL):
            rows.append("    *,")
        kind = p.kind
        rows.append(f"    {p},")
    return "\n".join([f"{name}(", *rows, f"){tail}"])


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Documented public members that classes of ours declare, an overriding one once."""
    seen: set[str] = set()
    for base in cls.__mro__:
        if OURS.match(base.__module__):
            for name, member in vars(base).items():
                inner = getattr(member, "__func__", member)
                documented = isinstance(member, property) or (callable(inner) and not inspect.isclass(inner))
                made = getattr(inner.fget if isinstance(member, property) else inner, "__module__", "")
                if name.startswith("_") or name in seen or not documented or not inner.__doc__ or not OURS.match(made):
                    continue
                seen.add(name)
                yield name, member


def shown(name: str, found: Any) -> Iterator[str]:
    """A class with its members, or a function."""
    yield f"## {name}\n"
    if not inspect.isclass(found):
        yield f"```text\n{signature(found, name, bound=False)}\n```\n"
        yield from prose(found.__doc__)
        return
    own = [b for b in found.__mro__ if OURS.match(b.__module__)]
    init = vars(found).get("__init__")
    told = name != "SacRag" and init is not None and OURS.match(init.__module__) and init.__doc__  # it has two ways in
    if told:
        yield f"```text\n{signature(init, name, bound=True)}\n```\n"
    yield from prose(found.__doc__)
    if told:
        yield from prose(told)
    rows = [f for base in own for f in fields_of(base)]
    once = {f.name: f for f in reversed(rows)}
    kept = [f for f in rows if once.pop(f.name, None)]
    if kept:
        yield from table(
            ("field", "type", "default", "meaning"),
            [(code(f.name), code(f.kind), code(f.default), f.doc) for f in kept],
        )
    for member, function in members(found):
        yield f"### {name}.{member}\n"
        if isinstance(function, property):
            back = inspect.signature(function.fget).return_annotation  # type: ignore[arg-type]
            yield f"```text\n{name}.{member}: {back}\n```\n"
        else:
            bound = not isinstance(inspect.getattr_static(found, member), staticmethod)
            yield f"```text\n{signature(getattr(function, '__func__', function), member, bound=bound)}\n```\n"
        yield from prose(function.__doc__)


def python() -> Iterator[str]:
    yield "# Python\n"
    yield MADE
    yield "The names of `sac_rag`, imported when they are first used. `IndexConfig` and `AskConfig` are on the page of"
    yield "[settings](settings.md).\n"
    module = importlib.import_module("sac_rag")
    names = sorted(set(public) - {"IndexConfig", "AskConfig", "SacError"}, key=lambda n: (n != "SacRag", n))
    for name in names:
        yield from shown(name, getattr(module, name))
    yield "## Functions of sac_rag.pipeline\n"
    for place in ("recode", "repair", "config_of"):
        found = load(f"sac_rag.pipeline:{place}")
        yield f"```text\n{signature(found, place, bound=False)}\n```\n"
        yield from prose(found.__doc__)
    yield "## Errors\n"
    yield "All of `sac_rag.errors`; the exit code is that of `sac`.\n"
    kinds = [e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, errors.SacError)]
    rows = [(code(e.__name__), code(e.__base__.__name__), str(e.exit_code), e.__doc__) for e in kinds]  # type: ignore[union-attr]
    yield from table(("error", "is a", "exit code", "meaning"), rows)


def integrations() -> Iterator[str]:
    yield "# LangChain and LlamaIndex\n"
    yield MADE
    yield "How they are used: [LangChain](../how-to/langchain.md), [LlamaIndex](../how-to/llama-index.md).\n"
    for name in ("langchain_sac", *(f"llama_index.{kind}.sac" for kind in LLAMA_INDEX)):
        module = importlib.import_module(name)
        for attribute in module.__all__:
            yield from (line for line in shown(f"{name}.{attribute}", getattr(module, attribute)))


def options_of(found: Any) -> str:
    """Keywords that a method takes beside backbone and layout, with their defaults."""
    parameters = inspect.signature(found).parameters.values()
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return ", ".join(f"`{p.name}={p.default}`" if p.default not in ("", None) else f"`{p.name}`" for p in own)


def names() -> Iterator[str]:
    yield "# Names\n"
    yield MADE
    yield "What flags and settings take by name. A name of one's own: [CONTRIBUTING.md](../../CONTRIBUTING.md).\n"
    for place, title in REGISTRIES.items():
        head, _, given = title.partition(": ")
        yield f"## {head}\n"
        yield f"{given}.\n"
        registry: Registry = load(place)
        methods = place.endswith("METHODS")
        rows = []
        for name in registry:
            found = registry.load(name)
            doc = inspect.cleandoc((found if inspect.isclass(found) else type(found)).__doc__ or "").split("\n\n")[0]
            if methods:  # the module says where it is from
                doc = inspect.cleandoc(inspect.getmodule(found).__doc__ or "").split("\n\n")[0]  # type: ignore[union-attr]
            rows.append((code(name), doc, *([options_of(found)] if methods else [])))
        yield from table(("name", "what it does", *(["options"] if methods else [])), rows)
    from sac_rag.text.formats import _FORMATS, _NAMES

    yield "## Files that are read\n"
    yield "By ending, or by whole name; encodings as they are declared, else as the bytes look. All else is skipped,"
    yield "with its reason.\n"
    kinds: dict[str, list[str]] = {}
    for ending, found in (_FORMATS | _NAMES).items():
        kinds.setdefault(found.media_type, []).append(ending)
    rows = [(media, " ".join(code(e) for e in sorted(ends))) for media, ends in sorted(kinds.items())]
    yield from table(("media type", "files"), rows)


def pages() -> dict[str, str]:
    """File name -> the whole page."""
    made = {"settings": settings, "commands": commands, "python": python, "integrations": integrations, "names": names}
    return {f"{name}.md": "\n".join(page()).rstrip() + "\n" for name, page in made.items()}


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text, "utf-8")
        print(PAGES / name)
