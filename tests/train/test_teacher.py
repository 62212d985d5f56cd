"""Distillation: the formula, the teacher's view of a question, shared weights, and errors."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch
import torch.nn.functional as F

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.backbone import LORA_TARGETS, Backbone, LoraSpec
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.full_ft import FullFt
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.models.sources import fingerprint_of
from sac_rag.train.data import TokenisedContext
from sac_rag.train.objectives import configured
from sac_rag.train.objectives.base import loss_of
from sac_rag.train.objectives.questions import QuestionSettings, question_batch
from sac_rag.train.run import run
from sac_rag.train.teacher import Teacher, mixed_divergence
from tests.conftest import byte_tokenizer, tiny_llama

LAYOUT = PromptLayout(prefix="<|im_start|>sys\n")


def full_ft(model, layout=LAYOUT):
    method = FullFt(Backbone(model, byte_tokenizer(), LoraSpec(4, 8.0, LORA_TARGETS, whole=True)), layout)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in method.parameters().values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return method


@pytest.fixture
def student(make_sac):
    return make_sac(trained=True)


@pytest.fixture
def teacher(student):
    return Teacher(full_ft(student.backbone.decoder))


def contexts(b, n=3):
    pairs = ((b.tokens("Who?"), b.tokens("Ada")), (b.tokens("Where to?"), b.tokens("Rome")))
    return [TokenisedContext(b.tokens(f"Ada went to Rome by boat number {i} of the line."), pairs) for i in range(n)]


def batch_of(method, layouts=(), **settings):
    settings = QuestionSettings(**{"recall_weight": 0.3, "distractor_share": 0.0, **settings})
    return question_batch(contexts(method.backbone), [3.0] * 3, method, settings, random.Random(0), layouts)


def answers(batch):
    """(context, row) of every answer that a teacher has a say in."""
    return [(i, row) for i, rows in enumerate(batch.readings) for row in rows if row.pair]


def test_the_mix_is_the_plain_formula():
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).unbind()
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    ahead, back = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    assert mixed_divergence(student, teacher).item() == pytest.approx(
        float((0.6 * ahead + 0.4 * back).mean()), abs=1e-6
    )
    assert mixed_divergence(student, teacher, 1.0).item() == pytest.approx(float(ahead.mean()), abs=1e-6)


def test_equal_logits_are_no_distance_apart_whatever_is_added_to_them():
    logits = torch.randn(5, 7, requires_grad=True)
    apart = mixed_divergence(logits, logits.detach() + 3.0)
    apart.backward()
    assert apart.item() == pytest.approx(0, abs=1e-6) and float(logits.grad.abs().max()) < 1e-6


def test_weight_zero_is_cross_entropy_and_another_adds_the_divergence(student, teacher):
    batch = batch_of(student)
    plain, log = loss_of(batch, student)
    zero, same = loss_of(batch, student, teacher=teacher, distil_weight=0.0)
    assert torch.equal(plain, zero) and log == same and "distil" not in log
    half, log = loss_of(batch, student, teacher=teacher, distil_weight=0.5)
    assert log["distil"] > 0 and half.item() == pytest.approx(plain.item() + 0.5 * log["distil"], abs=1e-5)


def test_the_teacher_reads_the_whole_text_of_all_passages(student, teacher):
    """Against the LoRA model's own forward over prefix, passages, question and answer, one question at a time."""
    batch = batch_of(student, distractor_share=1.0)
    b, layout = teacher.method.backbone, teacher.method.layout
    logits = torch.randn(sum(len(r.pair[1]) + 1 for _, r in answers(batch)), b.config.vocab_size)
    want, texts = [], [c.ids for c in contexts(b)]
    for i, row in answers(batch):
        assert len(batch.front[i]) > 1
        text = b.tokens(layout.separator.join(b.tokenizer.decode(texts[j]) for j in batch.front[i]))
        question, answer = row.pair
        head = [*b.template(layout.prefix), *text, *b.template(layout.before), *question, *b.template(layout.after)]
        with torch.no_grad():
            whole = b.encoder(torch.tensor([[*head, *answer]])).logits[0]
        want.append(whole[len(head) - 1 :])
    expected = mixed_divergence(logits, torch.cat(want))
    assert teacher.divergence(batch, logits).item() == pytest.approx(expected.item(), abs=1e-4)


def test_what_is_read_in_another_prompt_the_teacher_reads_in_its_own(make_sac):
    student = make_sac(trained=True, layout=PromptLayout())
    teacher = Teacher(full_ft(student.backbone.decoder, PromptLayout()))
    other = PromptLayout("<|im_start|>user\nRead:", "\nNow ", "<|im_end|>\n<|im_start|>assistant\n")
    batch = batch_of(student, (other,), recall_weight=0.0, prompt_share=1.0)
    asked, decode = teacher._same_questions(batch), student.backbone.tokenizer.decode
    rows = [row for rows in asked.readings for row in rows]
    assert len(rows) == len(answers(batch)) == 6
    for mine, (_, row) in zip(rows, answers(batch), strict=True):
        question, answer = map(decode, row.pair)
        assert decode(row.ids).startswith(f"\nNow {question}")
        assert decode(mine.ids[: mine.first]) == f"\nQuestion: {question}<|im_end|>\n<|im_start|>assistant\n"
        assert mine.ids[mine.first :] == row.ids[row.first :] and decode(row.ids[row.first :]) == f"{answer}<|im_end|>"


def test_gradients_reach_the_student_alone(student, teacher):
    b = student.backbone
    before = {n: p.detach().clone() for n, p in teacher.method.parameters().items()}
    loss, _ = loss_of(batch_of(student), student, teacher=teacher, distil_weight=1.0)
    loss.backward()
    assert student.parameters()["anchor_embedding"].grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.method.parameters().values())
    assert all(torch.equal(p, before[n]) for n, p in teacher.method.parameters().items())
    assert all(p.grad is None for p in b.decoder.parameters())


def test_a_teacher_has_no_say_where_the_passage_is_missing(student, teacher):
    _, log = loss_of(batch_of(student, mismatch_share=1.0), student, teacher=teacher, distil_weight=1.0)
    assert "distil" not in log and log["loss"] > 0


def test_the_base_is_held_once(student, teacher):
    mine, theirs = student.backbone, teacher.method.backbone
    held = {id(p) for p in mine.decoder.parameters()}
    assert {id(p) for n, p in theirs.encoder.named_parameters() if "lora_" not in n} <= held
    for ours, other in zip(mine._blocks, theirs._blocks, strict=True):
        assert all(a.data_ptr() == b.data_ptr() and torch.equal(a, b) for a, b in zip(ours, other, strict=True))
    layer = mine.decoder.model.layers[1].self_attn
    assert layer.q_proj.weight.data_ptr() == theirs._blocks[1].qkv.data_ptr()
    ids = torch.arange(5, 20)
    want = tiny_llama()(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(mine.plain_logits(ids), want, atol=0, rtol=0)


# -- by `run` ------------------------------------------------------------------------------------------------

QUICK = configured(
    steps=3, step_tokens=150, ratios=(2.0,), ratio_weights=(1.0,), warmup=1, learning_rate=5e-3,
    first_context=80, max_context=80, distil_weight=0.5,
)  # fmt: skip


@pytest.fixture
def data(tmp_path):
    rows = [
        {"context": f"In {i} Ada went to Rome by boat.", "qas": [{"question": "When?", "answers": [str(i)]}]}
        for i in range(12)
    ]
    path = tmp_path / "toy.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def make_adapter(tiny_base, tmp_path):
    """make_adapter(**card fields) -> folder of an adapter for `tiny_base`."""

    def make(**changes):
        card = Card(
            base=str(tiny_base),
            base_fingerprint=fingerprint_of(tiny_base),
            method="full-ft",
            ratios=(1.0,),
            lora={"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"], "whole": True},
            layout=LAYOUT.to_mapping(),
        )
        card = dataclasses.replace(card, **changes)
        folder = tmp_path / "teacher"
        adapter.save(adapter.build(tiny_llama(), byte_tokenizer(), card), card, folder)
        return folder

    return make


def settings(tiny_base):
    return {
        "base": str(tiny_base),
        "lora": LoraSpec(2, 4.0),
        "layout": LAYOUT.to_mapping(),
        "device": "cpu",
        "dtype": "float32",
    }


def test_run_teaches_and_resumes_exactly(data, make_adapter, tiny_base, tmp_path):
    teacher, same = make_adapter(), settings(tiny_base)
    whole = run([data], tmp_path / "whole", QUICK, teacher=teacher, **same)
    stopped = iter([False, True])
    run([data], tmp_path / "broken", QUICK, teacher=teacher, stop=stopped.__next__, **same)
    run([data], tmp_path / "broken", QUICK, teacher=teacher, **same)
    run([data], tmp_path / "untaught", QUICK.changed(distil_weight=0.0), **same)
    made = {n: (tmp_path / n / "adapter.safetensors").read_bytes() for n in ("whole", "broken", "untaught")}
    assert made["whole"] == made["broken"] != made["untaught"]
    (stage,) = whole.training["stages"]
    assert len(stage["teacher"]) == 64 and stage["distil_weight"] == 0.5
    steps = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert all(step["extra"]["distil"] > 0 for step in steps)
    with pytest.raises(ConfigError, match="start_from None, this one has '[0-9a-f]{64}'; use another output folder"):
        run([data], tmp_path / "broken", QUICK, teacher=teacher, start_from=tmp_path / "untaught", **same)
    other = make_adapter(lora={"rank": 2, "alpha": 8.0, "targets": ["q_proj", "v_proj"], "whole": True})
    with pytest.raises(ConfigError, match=f"teacher '{stage['teacher']}', this one has '[0-9a-f]{{64}}'"):
        run([data], tmp_path / "broken", QUICK, teacher=other, **same)


def test_a_teacher_is_trained_in_all_that_it_reads_with(data, tiny_base, tmp_path):
    config = QUICK.changed(distil_weight=0.0, steps=1)
    plain = run([data], tmp_path / "sac", config, **settings(tiny_base))
    card = run([data], tmp_path / "full", config, method="full-ft", **settings(tiny_base))
    assert plain.lora["whole"] is False and card.lora == {**plain.lora, "whole": True}
    with pytest.raises(ConfigError, match="full-ft reads in its own layout; leave the prompts chat out"):
        asked = config.changed(prompts=("chat",))
        run([data], tmp_path / "other", asked, method="full-ft", **settings(tiny_base))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "sac"}, ConfigError, "has method 'sac'.*--method full-ft"),
        ({"base_fingerprint": "f" * 64}, AdapterError, "was trained for .*ffffffffffff"),
        ({"layout": PromptLayout(prefix="Other").to_mapping()}, ConfigError, "layout prefix 'Other'"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(data, make_adapter, tiny_base, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run([data], tmp_path / "out", QUICK, teacher=make_adapter(**changes), **settings(tiny_base))
    assert not (tmp_path / "out").exists()


def test_a_weight_needs_a_teacher_and_a_teacher_a_weight(data, make_adapter, tiny_base, tmp_path):
    with pytest.raises(ConfigError, match="distil_weight is 0.5 without a teacher"):
        run([data], tmp_path / "out", QUICK, **settings(tiny_base))
    plain = QUICK.changed(distil_weight=0.0)
    with pytest.raises(ConfigError, match="distil_weight is 0 with a teacher"):
        run([data], tmp_path / "out", plain, teacher=make_adapter(), **settings(tiny_base))
    with pytest.raises(ConfigError, match="objective lm"):
        configured("lm", distil_weight=0.5)
    with pytest.raises(ConfigError, match="distil_weight is 0.5 with objective budget"):
        configured("budget", distil_weight=0.5)
    with pytest.raises(ConfigError, match="objective lm has no use for a teacher"):
        run([data], tmp_path / "out", configured("lm"), teacher=make_adapter(), **settings(tiny_base))


def test_full_ft_reads_several_passages_as_one_text(teacher):
    method = teacher.method
    batch = batch_of(method, distractor_share=1.0)
    b, gap = method.backbone, method.layout.separator
    texts = [b.tokenizer.decode(c.ids) for c in contexts(b)]
    assert batch.front == [[0], [1], [2]] and batch.pieces == [[0], [1], [2]]
    for i, chunk in enumerate(batch.chunks):
        parts = b.tokenizer.decode(list(chunk)).split(gap)
        assert texts[i] in parts and len(parts) > 1 and set(parts) <= set(texts)
    loss, _ = loss_of(batch, method)
    nats = []
    for chunk, rows in zip(batch.chunks, batch.readings, strict=True):
        for row in rows:
            head = [*b.template(method.layout.prefix), *chunk]
            with torch.no_grad():
                logits = b.encoder(torch.tensor([[*head, *row.ids]])).logits[0, len(head) + row.first - 1 : -1]
            nats.append((F.cross_entropy(logits, torch.tensor(row.ids[row.first :]), reduction="none"), row.weight))
    want = sum(float(n.sum()) * w for n, w in nats) / sum(len(n) * w for n, w in nats)
    assert loss.item() == pytest.approx(want, abs=1e-4)
