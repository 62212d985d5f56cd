"""A .gguf file and the folder made of it are the same model, to the bit after rounding."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_toys import WriteGguf
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sac_rag.errors import ModelError
from sac_rag.models import sources
from sac_rag.models.cache import models_root
from sac_rag.models.convert import _llama3_rope
from sac_rag.models.gguf_head import GgufHead, read_head
from sac_rag.models.progress import silent


def test_weights_survive_to_the_bit(write_gguf: WriteGguf, tiny_llama: Any, cache: Path) -> None:
    folder = sources.resolve_base(str(write_gguf()))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert getattr(model.config, "quantization_config", None) is None
    for name, tensor in tiny_llama.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16()), name
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        drift = (model.float()(ids).logits - tiny_llama(ids).logits).abs().max()
        assert drift < 0.02 * tiny_llama(ids).logits.abs().max()


def test_the_tokenizer_survives(write_gguf: WriteGguf, cache: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sources.resolve_base(str(write_gguf())))
    text = "naïve  10 漢字\n<|im_start|>user"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("<|im_start|>").input_ids == [257]
    assert tokenizer.model_max_length == 512 and tokenizer.chat_template.startswith("{% for")


@pytest.fixture
def whole(write_gguf: WriteGguf) -> bytes:
    return write_gguf(rope_factors=[1.0, 2.0, 4.0, 8.0]).read_bytes()[:9000]


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", ["ĠĠ", "1"]), ("default", ["Ġ", "Ġ1"])])
def test_digits_are_split_before_spaces_join(write_gguf: WriteGguf, cache: Path, pre: str, pieces: list[str]) -> None:
    folder = sources.resolve_base(str(write_gguf(pre=pre)))
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    split = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("  1")]
    assert split == pieces


def test_a_file_is_converted_once_under_its_hash(
    write_gguf: WriteGguf, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf("My Tiny_Model.Q4.gguf")
    folder = sources.resolve_base(str(file))
    assert folder.name.startswith("my-tiny-model.q4-")
    monkeypatch.setattr("sac_rag.models.convert.convert", lambda *_: pytest.fail("converted again"))
    assert sources.resolve_base(str(file.parent / "." / file.name)) == folder
    (tmp_path / "alone").mkdir()
    file.rename(tmp_path / "alone" / file.name)
    assert sources.resolve_base(str(tmp_path / "alone")) == folder  # a folder with one .gguf stands for it
    info = sources.list_models()[-1]
    assert (info.path, info.kind, info.present, info.source) == (folder, "base", True, f"file {file.name}")


def test_the_fingerprint_of_a_conversion_is_that_of_its_file(
    write_gguf: WriteGguf, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf()
    first = sources.fingerprint_of(sources.resolve_base(str(file)))
    monkeypatch.setenv("SAC_CACHE", str(tmp_path / "elsewhere"))
    assert sources.fingerprint_of(sources.resolve_base(str(file))) == first


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_frequencies_are_recovered(tiny_llama: Any, factor: float) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = type(tiny_llama.config)(hidden_size=128, num_attention_heads=2, head_dim=64, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2).float() / 64)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500000.0}
    assert _llama3_rope(Path("x.gguf"), config, tuple((plain / scaled).tolist())) == rope
    assert config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"architecture": "gemma2"}, "is a 'gemma2' model; sac-rag reads Llama, Mistral, Qwen2 or Qwen3"),
        ({"window": 256}, "sliding window of 256 tokens"),
        ({"experts": 4}, "'llama with 4 experts'"),
        ({"rope_scaling": "yarn"}, "RoPE scaling 'yarn'.*hub id"),
        ({"rope_factors": [1.0, 2.0, 3.0, 5.0]}, r"scales RoPE by factors of no known model \(1\.\.5\)"),
    ],
)
def test_what_cannot_be_converted_faithfully_is_refused(
    write_gguf: WriteGguf, cache: Path, facts: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        sources.resolve_base(str(write_gguf(**facts)))
    assert list(models_root().iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 99])
def test_a_broken_file_is_one_clear_line(cache: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.gguf is not a readable \.gguf file"):
        sources.resolve_base(str(tmp_path / "broken.gguf"))
    assert list(models_root().iterdir()) == []


def test_a_truncated_file_leaves_nothing(write_gguf: WriteGguf, cache: Path) -> None:
    file = write_gguf()
    file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(ModelError):
        sources.resolve_base(str(file))
    assert list(models_root().iterdir()) == []


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_the_head_escapes_as_another_error(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for at in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=4)) if damaged else ():
        damaged[at] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged.gguf").write_bytes(damaged)
    with contextlib.suppress(ModelError):
        read_head(tmp_path / "damaged.gguf")


def test_the_head_is_read_in_full(write_gguf: WriteGguf) -> None:
    head = read_head(write_gguf(pre="llama-bpe", rope_factors=[1.0, 2.0, 4.0, 8.0], rope_scaling="linear"))
    assert head == GgufHead("llama", 0, "linear", (1.0, 2.0, 4.0, 8.0), "llama-bpe")


def test_a_tokenizer_rebuilt_otherwise_is_refused(write_gguf: WriteGguf, tmp_path: Path) -> None:
    from sac_rag.models.convert import convert

    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=r"transformers .* rebuilds the tokenizer.*gives \[.*\], expected \[1, 2\]"):
        convert(write_gguf(), out, silent, probes=(("hi", (1, 2)),))


@pytest.mark.parametrize(("architecture", "head_dim"), [("llama", 8), ("qwen2", 8), ("qwen3", 128)])
def test_each_family_of_files_computes_what_its_source_does(
    write_gguf: WriteGguf, tiny_families: dict[str, Any], cache: Path, architecture: str, head_dim: int
) -> None:
    folder = sources.resolve_base(str(write_gguf(architecture=architecture, pre="qwen2", head_dim=head_dim)))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.config.model_type == architecture
    source, ids = tiny_families[architecture], torch.arange(60, 100)[None]
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16().float()), name
    with torch.no_grad():
        assert (model(ids).logits - source(ids).logits).abs().max() < 0.03 * source(ids).logits.abs().max()
