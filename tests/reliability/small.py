"""Tiny random models in a folder, and a product on them: what the parts torture in place of the default models."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sac_rag.config import IndexConfig
from sac_rag.library.library import Library
from tests.cli.cli_toys import Toys, make_adapter, make_bert
from tests.conftest import byte_tokenizer, tiny_llama

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    "amber basin cedar delta ember field grove haven inlet jetty knoll ledge marsh north ocean plain quarry ridge"
).split()


def models(folder: Path) -> Toys:
    """A model that says much, with a chat template, an embedder and an adapter that changes what is read.

    The cache of this process lies beside them from now on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["SAC_CACHE"] = str(folder / "cache")
    base, tokenizer = folder / "llama", byte_tokenizer()
    tiny_llama(seed=3, initializer_range=0.3, max_position_embeddings=8192).save_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    return Toys(base, make_bert(folder / "bert"), make_adapter(folder / "adapter", base))


def config(toys: Toys, **changes: object) -> IndexConfig:
    paths = {"model": str(toys.base), "adapter": str(toys.adapter), "embedder": str(toys.embedder)}
    return dataclasses.replace(IndexConfig(), **paths, **{"passage_tokens": 64, **changes})  # type: ignore[arg-type]


def sentences(seed: object, count: int = 3) -> str:
    """A text that follows from its seed, and no other seed has."""
    rng = random.Random(f"text {seed}")
    return " ".join(
        f"The {rng.choice(WORDS)} of {rng.choice(WORDS)} holds {rng.randrange(10**6)} stones." for _ in range(count)
    )


@contextlib.contextmanager
def settings(values: dict[str, str], folder: Path) -> Iterator[None]:
    """Environment and working folder, for a while."""
    before, here = dict(os.environ), Path.cwd()
    os.environ.update(values)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


def sac(args: Sequence[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a whole command, run in this process."""
    from sac_cli.main import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([*args])
    return code, out.getvalue(), err.getvalue()


def forget_models() -> None:
    """Those that this process has loaded would be refused in a child that is forked from it."""
    from sac_rag.answer.engine import Engine
    from sac_rag.models.embedder import Embedder

    Engine._shared.clear()
    Embedder._shared.clear()


def is_untyped(err: str) -> bool:
    """Whether a command ended with an error that is none of ours."""
    return "run with -v" in err or "Traceback" in err or re.search(r"^\w*(Error|Exception):", err, re.M) is not None


def contents(folder: Path) -> tuple[int, dict[str, tuple[str, ...]]]:
    """(generation, uri -> a digest of each passage: text, metadata, memory and vector) of a library that verifies."""
    with Library.open(folder) as library:
        problems = library.verify()
        assert problems == [], problems
        assert library.notice is None, library.notice
        passages = library.passages()
        state: dict[str, list[str]] = {d.uri: [] for d in library.documents()}
        vectors = library.vectors([p.id for p in passages]) if passages else []
        for p, kv, vector in zip(passages, library.load([p.id for p in passages]), vectors, strict=True):
            digest = hashlib.sha256(f"{p.id}\0{p.text}\0{p.ordinal}".encode())
            for tensor in (kv.keys, kv.values, kv.positions, kv.counts):
                digest.update(tensor.float().numpy().tobytes())
            digest.update(vector.tobytes())
            state[p.document].append(digest.hexdigest()[:16])
        if passages:
            found = library.search(vectors[0], None, len(passages), mode="dense")
            assert {h.passage.id for h in found} == {p.id for p in passages}
            words = library.search(None, passages[-1].text, len(passages), mode="lexical")
            assert passages[-1].id in {h.passage.id for h in words}
        return library.head.generation, {uri: tuple(all_) for uri, all_ in state.items()}


def held_by(library: Path, allowed: Sequence[dict[str, tuple[str, ...]]], name: str = "") -> Callable[[], str | None]:
    """A check that a library is whole and in one of these states; what is wrong, else None."""

    def check() -> str | None:
        try:
            _, now = contents(library)
        except Exception as error:
            return f"{name}: {type(error).__name__}: {error}"
        return None if now in allowed else f"{name}: a state that no commit left: {sorted(now)}"

    return check
