"""The tiny random models of tests/conftest.py with a chat template and an adapter that changes what is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from langchain_sac import ChatSac
from sac_rag import IndexConfig, SacRag
from sac_rag.answer.engine import Engine
from sac_rag.records import Document
from tests.conftest import byte_tokenizer, tiny_llama
from tests.integrations.conftest import TEXTS

OUTCOMES: defaultdict[str, Counter[str]] = defaultdict(Counter)
"""Module and class of a standard suite -> how its tests ended in this run, for test_suite_counts.py."""
DESELECTED: set[str] = set()
"""Those of which not all tests were chosen."""


def _suite(nodeid: str) -> str | None:
    module, *rest = nodeid.split("::")
    name = Path(module).stem
    chosen = name in ("test_standard", "test_real_model") and len(rest) == 2 and "integrations/langchain" in module
    return f"{name}::{rest[0]}" if chosen else None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if (suite := _suite(report.nodeid)) and (report.when == "call" or (report.when == "setup" and report.skipped)):
        OUTCOMES[suite]["xfailed" if hasattr(report, "wasxfail") else report.outcome] += 1


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    DESELECTED.update(filter(None, (_suite(item.nodeid) for item in items)))


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def chat_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    tiny_llama(seed=3, initializer_range=0.3, max_position_embeddings=8192).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_adapter(chat_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from sac_rag.compress import adapter
    from sac_rag.compress.layout import PromptLayout
    from sac_rag.models.loading import load_base
    from sac_rag.models.sources import fingerprint_of

    folder = tmp_path_factory.mktemp("adapters") / "tiny-chat-sac"
    card = adapter.Card(
        base=str(chat_base),
        base_fingerprint=fingerprint_of(chat_base),
        method="sac",
        ratios=(5.0,),
        lora={"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"]},
        layout=PromptLayout().to_mapping(),
    )
    method = adapter.build(*load_base(chat_base, torch.device("cpu"), torch.float32), card)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in method.parameters().items():
            if not name.startswith("prefix"):
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    adapter.save(method, card, folder)
    return folder


@pytest.fixture(scope="session")
def chat_config(chat_base: Path, chat_adapter: Path, tiny_embedder: Path) -> IndexConfig:
    paths = {"model": chat_base, "adapter": chat_adapter, "embedder": tiny_embedder}
    config = IndexConfig(**{name: str(path.resolve()) for name, path in paths.items()}, passage_tokens=128)
    # "auto" may be bfloat16, where near ties fall as the batch does; here tokens are compared one by one.
    key = (config.model, config.method, config.adapter)
    Engine._shared[Engine._key(*key, "auto", "auto")] = Engine.shared(*key, dtype="float32")
    return config


@pytest.fixture
def tiny_config(chat_config: IndexConfig) -> IndexConfig:
    return chat_config


@pytest.fixture(scope="session")
def rag(chat_config: IndexConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SacRag]:
    """One library for all of these tests: they only read it."""
    path = tmp_path_factory.mktemp("libraries") / "three.lib"
    with SacRag.open(path, config=chat_config, write=True, create=True) as opened:
        headings = ((0, "Facts"),)
        opened.put([Document(uri, text, headings=headings, meta={"kind": uri[0]}) for uri, text in TEXTS.items()])
        yield opened


@pytest.fixture
def chat(rag: SacRag) -> ChatSac:
    return ChatSac(rag=rag, max_tokens=12)
