"""Decoders without transformers: what it makes of a folder, weight by weight and number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sac_rag.compress.backbone import Backbone
from sac_rag.errors import ModelError
from sac_rag.families import FAMILIES, weights_of
from sac_rag.models import decoder, notes
from sac_rag.models.loading import eos_ids, load_base
from tests.conftest import byte_tokenizer, tiny_model

CPU = torch.device("cpu")
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 512},
}  # fmt: skip


@pytest.fixture
def folder(cache: Path, tmp_path: Path) -> Path:
    return tmp_path / "base"


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def same(folder: Path, dtype: torch.dtype) -> None:
    """Load a folder both ways and compare all that a Backbone asks a model for."""
    ours, _ = load_base(folder, CPU, dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert type(ours) is decoder.Decoder
    wanted = dict(theirs.named_parameters())
    assert [name for name, _ in ours.named_parameters()] == list(wanted)
    for name, parameter in ours.named_parameters():
        assert parameter.dtype == dtype and not parameter.requires_grad
        assert torch.equal(parameter, wanted[name]), name
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == theirs.config.tie_word_embeddings
    assert torch.equal(ours.model.rotary_emb.inv_freq, theirs.model.rotary_emb.inv_freq)
    assert ours.model.rotary_emb.attention_scaling == theirs.model.rotary_emb.attention_scaling
    assert json.loads(json.dumps(theirs.config.to_dict())) | {"dtype": 0} == ours.config.to_dict() | {"dtype": 0}
    ids = torch.arange(3, 60)
    with torch.no_grad():
        logits = theirs(input_ids=ids[None]).logits[0]
        backbone = Backbone(ours, byte_tokenizer())
        assert torch.equal(backbone.plain_logits(ids), logits)
        again, reference = (Backbone(m, byte_tokenizer()) for m in (ours, theirs))
        keys = torch.randn(2, 57, again.head_dim)
        assert torch.equal(again.rotate_like_model(keys, ids), reference.rotate_like_model(keys, ids))
        read = [
            b.walk(ids, torch.arange(57), lambda i, q, k, v: q.flatten(1), scored=torch.tensor([5, 56]))
            for b in (again, reference)
        ]
        assert torch.equal(*read)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_is_that_of_transformers(folder: Path, family: str, dtype: torch.dtype) -> None:
    same(saved(tiny_model(family), folder), dtype)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_biases_that_a_config_asks_for_are_read(folder: Path, family: str) -> None:
    asked = {"llama": {"attention_bias": True, "mlp_bias": True}, "qwen3": {"attention_bias": True}}[family]
    model = tiny_model(family, **asked)
    assert {n for n, _ in model.named_parameters()} == set(weights_of(model.config.to_dict()))
    same(saved(model, folder), torch.float32)


@pytest.mark.parametrize("kind", ROPES)
def test_rope_is_that_of_transformers(folder: Path, kind: str) -> None:
    same(saved(tiny_model(rope_parameters=ROPES[kind], head_dim=32), folder), torch.float32)


def test_shards_are_put_together(folder: Path) -> None:
    model = tiny_model(tie_word_embeddings=False)
    model.save_pretrained(folder, max_shard_size="60KB")
    byte_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    same(folder, torch.float32)


@pytest.mark.parametrize("eos, wanted", [(2, [2]), ([2, 5], [2, 5]), (None, [])])
def test_texts_end_where_transformers_ends_them(folder: Path, eos: Any, wanted: list[int]) -> None:
    saved(tiny_model(), folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": eos}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert eos_ids(load_base(folder, CPU, torch.float32)[0]) == wanted == eos_ids(theirs)


def test_a_folder_without_settings_of_generation_ends_by_its_config(folder: Path) -> None:
    saved(tiny_model(), folder)
    (folder / "generation_config.json").unlink()
    assert eos_ids(load_base(folder, CPU, torch.float32)[0]) == [2]


def test_weights_of_other_names_are_left_to_transformers(folder: Path) -> None:
    """A head beside tied embeddings: which of them counts is a matter of transformers."""
    saved(tiny_model(), folder)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "lm_head.weight": torch.ones(259, 48)}, folder / "model.safetensors", {"format": "pt"})
    ours, _ = load_base(folder, CPU, torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)


def test_frequencies_in_the_file_are_passed_over(folder: Path) -> None:
    saved(tiny_model(), folder)
    weights = load_file(folder / "model.safetensors")
    weights |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(6) for i in range(3)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    same(folder, torch.float32)


def test_weights_are_mapped(folder: Path) -> None:
    saved(tiny_model().to(torch.bfloat16), folder)
    model, _ = load_base(folder, CPU, torch.bfloat16)
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("maps of a process are seen in /proc alone")
    spans = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in mapped.read_text().splitlines()
        if line.endswith(str(folder / "model.safetensors"))
    ]
    for name, parameter in model.named_parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in spans), name


def test_what_transformers_says_is_asked_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tiny_model(), folder)
    asked: list[Path] = []
    ask = decoder._asked
    monkeypatch.setattr(decoder, "_asked", lambda path: asked.append(path) or ask(path))
    for _ in range(2):
        load_base(folder, CPU, torch.float32)
    assert asked == [folder]
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 0.5}))
    model, _ = load_base(folder, CPU, torch.float32)
    assert len(asked) == 2 and model.model.norm.variance_epsilon == 0.5
    monkeypatch.setattr(notes, "version_of", lambda package: "another")
    load_base(folder, CPU, torch.float32)
    assert len(asked) == 3


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"config": NaN}'])
def test_a_damaged_note_is_asked_anew(folder: Path, cache: Path, damage: bytes) -> None:
    saved(tiny_model(), folder)
    load_base(folder, CPU, torch.float32)
    (note,) = (cache / "read").glob("base-*")
    note.write_bytes(damage)
    same(folder, torch.float32)


def test_damaged_weights_are_named(folder: Path) -> None:
    saved(tiny_model(), folder)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(folder, CPU, torch.float32)
