"""The reader adapter: trained behind memories that stay as they are, stored beside their adapter, chosen by request."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch

from sac_rag import AskConfig, Document, IndexConfig, SacRag
from sac_rag.answer.engine import Engine
from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.backbone import Reading
from sac_rag.compress.methods.full_ft import FullFt
from sac_rag.compress.reader_adapter import READER, ReaderAdapter
from sac_rag.compress.session import Session
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.evaluate.results import Origin
from sac_rag.train.objectives import configured
from sac_rag.train.run import run
from tests.laws.test_memory_laws import ids

SETTINGS = {
    **{"steps": 5, "step_tokens": 200, "accumulate": 1, "warmup": 1, "learning_rate": 1e-2, "recall_weight": 0.0},
    **{"ratios": (2.0, 5.0), "ratio_weights": (0.5, 0.5), "reader_rank": 4, "distractors_from": 0.0},
}
QUESTION = ids(9, seed=9)


@pytest.fixture
def stage(tiny_base, tiny_adapter, data_folder, tmp_path):
    """Trains a reader for the tiny adapter: stage(output, **settings) -> its card."""

    def train(output="reader", *, stop=None, start_from=tiny_adapter, **settings):
        config = configured("reader", **{**SETTINGS, **settings})
        data = [str(data_folder / "qa/squad.train.jsonl.gz")]
        return run(data, tmp_path / output, config, base=str(tiny_base), start_from=start_from, stop=stop)

    return train


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def scrambled(reader, seed=0, by=0.2):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in reader.parameters().values():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return reader


def test_only_the_reader_is_trained_and_the_adapter_keeps_its_bytes(stage, tiny_adapter, tmp_path):
    """Whatever was stored with the adapter before is read with the reader: its hash is that of before."""
    card = stage()
    made = tmp_path / "reader"
    assert sha(made / "adapter.safetensors") == sha(tiny_adapter / "adapter.safetensors")
    assert Card.read(made).reader["sha256"] == sha(made / "reader.safetensors")
    assert card.training["stages"][-1]["objective"] == "reader"
    tensors = adapter.read_tensors(made / "reader.safetensors")
    assert all(name.startswith(READER) for name in tensors)
    moved = [n for n, t in tensors.items() if "lora_B" in n and t.abs().max() > 0]
    assert len(moved) == sum("lora_B" in n for n in tensors), "every layer that reads learns, the last one whole"


@pytest.mark.parametrize(("share", "most", "count"), [(0.0, 3, 0), (0.5, 1, 1), (1.0, 3, 2), (1.0, 4, 2)])
def test_the_card_names_the_sentences_that_the_reader_was_trained_with(share, most, count, stage, tmp_path):
    card = stage(steps=1, evidence_share=share, most_evidence=most)
    assert card.evidence_of("adapter") == Card.read(tmp_path / "reader").evidence_of("adapter") == count
    assert card.evidence_of("base") == 0, "the base was trained with nothing"
    further = stage("further", steps=1, start_from=tmp_path / "reader")
    assert further.evidence_of("adapter") == count, "a stage without sentences leaves the number"


def test_the_card_names_the_sentences_that_the_encoder_was_trained_with(tiny_base, tiny_adapter, data_folder, tmp_path):
    data = [str(data_folder / "qa/squad.train.jsonl.gz")]
    config = configured("qa", steps=1, step_tokens=200, accumulate=1, warmup=1, evidence_share=0.5)
    card = run(data, tmp_path / "qa", config, base=str(tiny_base), start_from=tiny_adapter)
    assert card.evidence == Card.read(tmp_path / "qa").evidence == 2 and card.evidence_of("adapter") == 0


def test_the_loss_falls(stage, tmp_path):
    stage(steps=40, max_context=200)
    lines = [json.loads(line) for line in (tmp_path / "reader/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1


def test_a_stopped_run_goes_on_to_the_same_bytes(stage, tmp_path):
    stage("whole")
    asked = iter([False, False, True])
    stage("broken", stop=lambda: next(asked))
    stage("broken")
    assert sha(tmp_path / "whole/reader.safetensors") == sha(tmp_path / "broken/reader.safetensors")


def test_a_second_stage_goes_on_from_the_first_reader(stage, tmp_path):
    stage()
    stage("more", start_from=tmp_path / "reader", steps=1, learning_rate=1e-9)
    first, second = (adapter.read_tensors(tmp_path / n / "reader.safetensors") for n in ("reader", "more"))
    for name, tensor in first.items():  # a step of 1e-9, which shows in numbers that are hardly larger alone
        torch.testing.assert_close(second[name], tensor, atol=1e-8, rtol=0)


def test_a_new_encoder_has_no_reader_of_the_old_one(stage, tmp_path, tiny_base, data_folder):
    stage()
    config = configured("qa", steps=1, step_tokens=200, accumulate=1, recall_weight=0.0)
    data = [str(data_folder / "qa/squad.train.jsonl.gz")]
    card = run(data, tmp_path / "encoder", config, base=str(tiny_base), start_from=tmp_path / "reader")
    assert not Card.read(tmp_path / "encoder").reader and not (tmp_path / "encoder/reader.safetensors").exists()
    assert len(card.training["stages"]) == 2


def test_it_begins_with_a_share_of_a_full_ft_adapter(make_sac, make_backbone):
    """A as it is, B by the share: the update is that share of the other's."""
    method = make_sac()
    whole = FullFt(ReaderAdapter(method.backbone, method.backbone.lora).backbone, method.layout)
    tensors = {n: torch.randn_like(p) for n, p in whole.parameters().items()}
    reader = ReaderAdapter(method.backbone, method.backbone.lora)
    reader.start(tensors, 0.5)
    for name, p in reader.parameters().items():
        theirs = tensors[name.removeprefix(READER)]
        assert torch.equal(p, theirs if "lora_A" in name else 0.5 * theirs)
    with pytest.raises(AdapterError, match="another shape"):
        reader.start({n: t for n, t in tensors.items() if "q_proj" not in n}, 0.5)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_folded_it_reads_as_it_does_beside_the_base(name, make_sac):
    """Weights with the LoRA added against the LoRA's own path; the base is what it was."""
    method = make_sac(trained=True)
    method.reader = scrambled(ReaderAdapter(method.backbone, method.backbone.lora))
    memory = method.memory(method.compress([ids(60, seed=1).tolist()], 5.0))
    readings = [Reading(QUESTION, torch.arange(len(QUESTION)), 0)]
    with torch.inference_mode():
        plain = method.backbone.read([memory], readings)
        want = method.read([memory], readings)
        folded = method.reader.folded()
        assert torch.allclose(folded.read([memory], readings), want, atol=1e-4)
        assert torch.allclose(Session(folded, [[memory, QUESTION.tolist()]]).logits[0], want[-1], atol=1e-4)
        assert torch.equal(method.backbone.read([memory], readings), plain)
        assert not torch.allclose(want, plain, atol=1e-2), "it does read otherwise"


def test_what_it_begins_from_and_how_is_checked(stage, tiny_adapter, tmp_path):
    with pytest.raises(ConfigError, match="add --from"):
        stage(start_from=None)
    with pytest.raises(ConfigError, match="method 'sac': it takes one of full-ft"):
        stage(reader_from=str(tiny_adapter))
    for wrong in ({"reader_rank": 0}, {"reader_share": 0.0}, {"distil_weight": 1.0}, {"future_from": -8.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            stage(**wrong)


# -- answering -------------------------------------------------------------------------------------------


@pytest.fixture
def rag(stage, tmp_path, tiny_base, tiny_embedder, data_folder):
    """A library that was indexed before its adapter had a reader, opened with one that answers otherwise."""
    stage(learning_rate=0.1)
    folder = tmp_path / "reader"
    config = IndexConfig(model=str(tiny_base), adapter=str(folder), embedder=str(tiny_embedder), passage_tokens=64)
    with SacRag.open(tmp_path / "lib", config=config, create=True) as made:
        texts = {n: f"The {n} lamp burned oil until 190{n}, when Oslo paid for gas." for n in "123"}
        made.put([Document(f"{n}.txt", text) for n, text in texts.items()])
        yield made


def test_a_request_chooses_its_reader_from_one_library(rag):
    settings = {"max_new_tokens": 12}
    plain = rag.ask("Until when?", **settings)
    adapted = rag.ask("Until when?", reader="adapter", **settings)
    assert adapted.text != plain.text
    assert (adapted.sources, adapted.usage.anchors) == (plain.sources, plain.usage.anchors)
    assert rag.ask("Until when?", **settings).text == plain.text
    text = rag.ask("Until when?", AskConfig(reader="adapter"), text=True, **settings)
    assert text.text == rag.ask("Until when?", text=True, **settings).text, "text is read by the model as it is"


def test_both_readers_at_once_answer_as_each_alone(rag):
    """Two batches under way on one model: each is what it is alone."""
    asked = [("Until when?", "base"), ("Who paid?", "adapter"), ("Until when?", "adapter"), ("Who paid?", "base")]
    alone = [rag.ask(q, reader=r, max_new_tokens=12).text for q, r in asked]
    streams = [rag.stream(q, reader=r, max_new_tokens=12) for q, r in asked]
    while any([next(s, None) is not None for s in streams]):
        pass
    assert [s.answer.text for s in streams] == alone


def test_an_adapter_without_a_reader_says_so(tiny_config, tmp_path):
    with SacRag.open(tmp_path / "lib", config=tiny_config, create=True) as rag:
        rag.put([Document("a.txt", "The lamp burned oil.")])
        with pytest.raises(AdapterError, match="has no reader adapter"):
            rag.ask("What?", reader="adapter")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"reader": "full"}, "use base or adapter"), ({"fidelity": "text"}, "'text'"), ({"fidelity": "auto"}, "'auto'")],
)
def test_settings_that_do_not_go_together_are_refused(wrong, says):
    with pytest.raises(ConfigError, match=says):
        AskConfig(**{"reader": "adapter", **wrong})


def test_tensors_that_the_card_does_not_name_are_refused(rag, tmp_path, tiny_base):
    """Exchanged, cut or missing: nothing of them is read."""
    folder = tmp_path / "other"
    shutil.copytree(tmp_path / "reader", folder)
    path = folder / "reader.safetensors"
    whole = path.read_bytes()
    engine = Engine(str(tiny_base), "sac", str(folder))
    other = whole[:-1] + bytes([whole[-1] ^ 1])
    for data, says in ((other, "not the file"), (whole[:500], "at least"), (b"", "at least")):
        path.write_bytes(data)
        with pytest.raises(AdapterError, match=says):
            _ = engine.adapted
    path.unlink()
    with pytest.raises(AdapterError, match="cannot be read"):
        _ = engine.adapted


def test_runs_of_the_reader_are_stored_under_its_hash(stage, tmp_path, tiny_base):
    stage()
    origin = Origin.of(str(tiny_base), "sac", str(tmp_path / "reader"))
    assert origin.determines(True, "adapter")["reader_sha256"] == sha(tmp_path / "reader/reader.safetensors")
    assert "reader_sha256" not in origin.determines(True)
