"""Training, evaluation and the demonstration for real, on toys."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_toys import Sac, Toys

SIZES = ("--step-tokens", "300", "--max-context", "128", "--first-context", "96", "--warmup", "1", "--dtype", "float32")
SMALL = (*SIZES, "--processes", "1")


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [
        {
            "context": f"The lamp of house {i} burned oil until {1900 + i}, when the board paid for gas.",
            "qas": [{"qid": str(i), "question": f"Until when did lamp {i} burn oil?", "answers": [str(1900 + i)]}],
        }
        for i in range(8)
    ]
    (tmp_path / "lamps.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "lamps.jsonl"


def test_train_makes_an_adapter_that_index_takes(sac: Sac, toys: Toys, data: str, documents: Path) -> None:
    flags = ("--lora-rank", "2", "--ratios", "4", "--ratio-weights", "1", "--licence", "CC0")
    done = sac("train", data, "-o", "runs/a", "--base", str(toys.base), "--steps", "2", "--json", *SMALL, *flags)
    assert done.code == 0, done.err
    card = done.json
    assert card == json.loads(Path("runs/a/card.json").read_text())
    assert card["base"] == str(toys.base) and len(card["base_fingerprint"]) == 64
    assert card["lora"]["rank"] == 2 and card["ratios"] == [4.0] and card["licence"] == "CC0"
    assert card["layout"]["separator"] == "\n\n"
    assert card["training"]["stages"][0]["steps_done"] == 2

    indexed = sac("index", "docs", **{**toys.environment, "SAC_ADAPTER": "runs/a", "SAC_RATIO": "4"})
    assert indexed.code == 0, indexed.err

    more = ("--ratios", "4", "--ratios", "9", "--ratio-weights", "1,1")
    warm = sac("train", f"{data}=0.5", "-o", "runs/b", "--from", "runs/a", "--steps", "1", "--json", *SMALL, *more)
    assert warm.code == 0, warm.err
    assert warm.json["lora"] == card["lora"] and warm.json["ratios"] == [4.0, 9.0]
    assert [stage["steps"] for stage in warm.json["training"]["stages"]] == [2, 1]
    other = sac("train", data, "-o", "runs/c", "--from", "runs/a", "--lora-rank", "3", "--processes", "1")
    assert other.code == 2 and "lora" in other.err and not Path("runs/c").exists()


def test_a_flag_that_the_objective_does_not_read_is_passed_over_with_a_word(sac: Sac, toys: Toys, data: str) -> None:
    Path("book.txt").write_text("It was a dark and stormy night; the rain fell in torrents. " * 20)
    flags = ("--base", str(toys.base), "--steps", "1", "--lora-rank", "2", "--json", *SMALL)
    for objective in ("lm", "ae"):
        made = sac("train", "book.txt", "-o", objective, *flags, "--objective", objective, "--recall-weight", "0.3")
        assert made.code == 0 and f"--objective {objective} does not read --recall-weight" in made.err
        (stage,) = made.json["training"]["stages"]
        assert stage["objective"] == objective and "recall_weight" not in stage and stage["examples"] > 0


def test_a_layout_is_the_models_own_but_for_what_is_given(sac: Sac, toys: Toys, data: str) -> None:
    from sac_rag.compress.templates import layout_of
    from sac_rag.models.loading import load_base

    own = layout_of(load_base(toys.base, torch.device("cpu"), torch.float32)[1]).to_mapping()
    flags = ("-o", "runs/a", "--base", str(toys.base), "--steps", "1", "--lora-rank", "2", "--json", *SMALL)
    done = sac("train", data, *flags, "--layout-before", " Asked: ")
    assert done.code == 0, done.err
    assert done.json["layout"] == {**own, "before": " Asked: "}
    same = ("--from", "runs/a", "--steps", "1", "--processes", "1", *SMALL)
    assert sac("train", data, "-o", "runs/b", *same, "--layout-before", " Asked: ").code == 0
    other = sac("train", data, "-o", "runs/c", *same, "--layout-after", "!")
    assert other.code == 2 and "has layout" in other.err and not Path("runs/c").exists()


def test_ctrl_c_saves_and_the_same_command_goes_on(
    sac: Sac, toys: Toys, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sac_cli import train

    @contextmanager
    def interrupting() -> Iterator[Callable[[Any], None]]:
        yield lambda progress: os.kill(os.getpid(), signal.SIGINT)

    args = ("train", data, "-o", "run", "--base", str(toys.base), "--steps", "3", "--lora-rank", "2", *SMALL)
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(train, "_bar", interrupting)
        stopped = sac(*args)
    assert stopped.code == 130 and "stopped at step 1 of 3" in stopped.err
    assert signal.getsignal(signal.SIGINT) is before
    resumed = sac(*args, "--json")
    assert resumed.code == 0, resumed.err
    (stage,) = resumed.json["training"]["stages"]
    assert stage["steps_done"] == 3
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_processes_train_what_one_does_and_stop_and_resume_as_one(
    sac: Sac, toys: Toys, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from sac_cli import train
    from sac_rag.compress.adapter import read_tensors

    args = ("train", data, "--base", str(toys.base), "--steps", "3", "--lora-rank", "2", *SIZES)
    pressed: list[int] = []

    @contextmanager
    def interrupting() -> Iterator[Callable[[Any], None]]:
        def press(progress: Any) -> None:
            if not pressed:  # a second one kills
                os.kill(os.getpid(), signal.SIGINT)
            pressed.append(progress.step)

        yield press

    with monkeypatch.context() as patch:
        patch.setattr(train, "_bar", interrupting)
        stopped = sac(*args, "--steps", "300", "-o", "two", "--processes", "2")
    assert stopped.code == 130 and stopped.out == "" and stopped.err.count("error:") == 1
    assert 1 <= len(pressed) < 300

    one = sac(*args, "-o", "one", "--processes", "1", "--json")
    both = sac(*args, "-o", "both", "--processes", "2", "--json")
    assert (one.code, both.code) == (0, 0), one.err + both.err
    assert both.json["training"]["stages"][0]["steps_done"] == 3
    lines = [json.loads(line) for line in Path("both/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    a, b = (read_tensors(Path(n) / "adapter.safetensors") for n in ("one", "both"))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], atol=2e-3, rtol=2e-2)

    again = sac(*args, "--steps", "4", "-o", "both", "--processes", "1", "--json")
    assert again.code == 0 and again.json["training"]["stages"][-1]["steps_done"] == 4
    damaged = Path("damaged.jsonl")
    damaged.write_text("{")
    failed = sac("train", str(damaged), "-o", "none", "--base", str(toys.base), *SIZES, "--processes", "2")
    assert failed.code == 1 and failed.err.count("error:") == 1 and "damaged.jsonl" in failed.err


def test_only_the_leader_of_a_team_speaks(sac: Sac, toys: Toys, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sac_rag.train.team import Team

    monkeypatch.setattr(Team, "join", lambda device: Team())
    for rank, out in (("0", True), ("1", False)):
        args = ("train", data, "-o", f"run{rank}", "--base", str(toys.base), "--steps", "1", "--lora-rank", "2")
        done = sac(*args, *SIZES, WORLD_SIZE="2", RANK=rank)
        assert done.code == 0 and ("steps done" in done.out) is out and bool(done.out) is out, done.err
    other = sac("train", data, "-o", "none", *SIZES, "--processes", "3", WORLD_SIZE="2", RANK="0")
    assert other.code == 2 and "2 were started already" in other.err


def test_ctrl_c_before_the_first_step_ends_at_once() -> None:
    from sac_cli import interrupts

    with pytest.raises(KeyboardInterrupt), interrupts.after_step():
        os.kill(os.getpid(), signal.SIGINT)


def test_eval(sac: Sac, toys: Toys, data: str) -> None:
    flags = ("--limit", "2", "--adapter", str(toys.adapter), "--model", str(toys.base), "--dtype", "float32")
    done = sac("eval", data, "--reader", "closed,text", "--reader", "memory", "--ratio", "5,15", "--json", *flags)
    assert done.code == 0, done.err
    runs = done.json["runs"]
    assert [(r["reader"], r["method"], r["ratio"]) for r in runs] == [
        ("closed", None, None),
        ("text", None, None),
        ("memory", "sac", 5.0),
        ("memory", "sac", 15.0),
    ]
    assert all(r["set"] == "lamps" and r["n"] == 2 for r in runs)
    keys = {"set", "reader", "method", "ratio", "n", "f1", "em", "rouge1", "em_raw", "seconds"}
    assert all(set(r) >= keys for r in runs)
    table = sac("eval", data, "--reader", "closed", *flags).out
    assert table.startswith("lamps\tclosed\t\t\t2\t")


def test_demo(sac: Sac, toys: Toys, documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sac_cli import demo
    from sac_rag import samples
    from sac_rag.config import IndexConfig

    asked = [samples.SampleQuestion("Who approves trips?", ("Ada Quill",), "travel.md")] * 2
    monkeypatch.setattr(samples, "documents", lambda: documents)
    monkeypatch.setattr(samples, "questions", lambda: asked)
    config = IndexConfig(
        model=str(toys.base), embedder=str(toys.embedder), adapter=str(toys.adapter), passage_tokens=64
    )
    whole = demo.run
    monkeypatch.setattr(demo, "run", lambda library, **kwargs: whole(library, config=config, **kwargs))
    done = sac("demo", "--json", "--dtype", "float32")
    assert done.code == 0, done.err
    assert set(done.json) == {"library", "index", "questions", "summary"}
    assert not Path(done.json["library"]).exists()
    compressed, text = done.json["summary"]["compressed"], done.json["summary"]["text"]
    assert set(compressed) == set(text) == {"first_token_s", "tokens_attended", "kv_bytes", "right", "questions"}
    assert compressed["tokens_attended"] < text["tokens_attended"]
    assert compressed["kv_bytes"] == compressed["tokens_attended"] * 2 * 2 * 2 * 8 * 4

    kept = sac("demo", "--library", "demo.lib", "--dtype", "float32")
    assert kept.code == 0 and "right answers\t" in kept.out and Path("demo.lib").exists()
    assert kept.out.count("Q Who approves trips?") == 2
    assert sac("ls", "-l", "demo.lib", "--json").json["documents"]


@pytest.fixture
def folder(tmp_path: Path, data: str) -> str:
    import gzip

    body = Path(data).read_bytes()
    for name, text in (("qa/squad.train", body), ("lm/train-00", json.dumps({"text": "A dark night. " * 99}).encode())):
        path = tmp_path / "data" / f"{name}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text))
    return "data"


def test_a_recipe_trains_all_stages_and_says_what_it_is(sac: Sac, toys: Toys, folder: str) -> None:
    args = ("train", "--recipe", "tiny", folder, "-o", "out", "--base", str(toys.base), "--dtype", "float32")
    done = sac(*args, "--steps-scale", "0.4", "--micro-tokens", "512", "--licence", "CC0", "--json")
    assert done.code == 0, done.err
    assert [(s["objective"], s["steps"], s["accumulate"]) for s in done.json["training"]["stages"]] == [
        ("salience", 1, 1),
        ("budget", 1, 1),
        ("lm", 1, 1),
        ("qa", 1, 1),
    ]
    assert done.json == json.loads(Path("out/card.json").read_text()) and done.json["licence"] == "CC0"
    assert "recipe tiny: A rehearsal" in done.err
    other = sac(*args, "--json")
    assert other.code == 2 and "use another output folder" in other.err and other.err.count("error:") == 1


@pytest.mark.minutes
def test_a_recipe_is_followed_by_several_processes(sac: Sac, toys: Toys, folder: str) -> None:
    args = ("--base", str(toys.base), "--dtype", "float32", "--steps-scale", "0.4", "--json")
    done = sac("train", "--recipe", "tiny", folder, "-o", "out", *args, "--processes", "2")
    assert done.code == 0, done.err
    assert [(s["steps_done"], s["accumulate"]) for s in done.json["training"]["stages"]] == [(1, 2)] * 4
    assert done.json == json.loads(Path("out/card.json").read_text()) and done.err.count("recipe tiny") == 1
    many = sac("train", "--recipe", "tiny", folder, "-o", "many", *args, "--processes", "3")
    assert many.code == 2 and "a step has 2 micro-batches" in many.err and not Path("many").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--steps", "5", "--lora-rank", "3"), "what --steps, --lora-rank would"),
        (("--from", "runs/a"), "what --from would"),
        (("--teacher", "runs/a"), "what --teacher would"),
        (("more.jsonl",), "takes one folder of data, got 2"),
        (("--steps-scale", "0"), "the scale of the steps is 0"),
    ],
)
def test_what_a_recipe_fixes_is_refused(sac: Sac, folder: str, args: tuple[str, ...], message: str) -> None:
    done = sac("train", folder, "-o", "out", "--recipe", "tiny", *args)
    assert done.code == 2 and message in " ".join(done.err.split()) and not Path("out").exists()


def test_flags_of_recipes_are_for_recipes(sac: Sac, data: str) -> None:
    done = sac("train", data, "-o", "out", "--steps-scale", "0.5")
    assert done.code == 2 and "are for --recipe" in done.err
    assert "unknown recipe 'big'; use default" in sac("train", data, "-o", "out", "--recipe", "big").err


def test_help_names_every_recipe(sac: Sac) -> None:
    from sac_rag.train.recipes import RECIPES

    shown = " ".join(sac("train", "--help", COLUMNS="400").out.split())
    families = ("rival-", "paper-")  # one a method, told by the family
    assert all(family in shown for family in families)
    assert [name for name in RECIPES if name not in shown and not name.startswith(families)] == []


def test_a_qwen3_folder_is_trained_indexed_and_asked(sac: Sac, toys: Toys, data: str, documents: Path) -> None:
    """From a base model of another family than the default's, with norms of heads and a width that is not theirs."""
    from tests.conftest import byte_tokenizer, tiny_model

    for saved in (tiny_model("qwen3"), byte_tokenizer()):
        saved.save_pretrained("qwen3")
    flags = ("--lora-rank", "2", "--ratios", "4", "--ratio-weights", "1")
    done = sac("train", data, "-o", "runs/q", "--base", "qwen3", "--steps", "2", "--json", *SMALL, *flags)
    assert done.code == 0, done.err
    made = {**toys.environment, "SAC_MODEL": "qwen3", "SAC_ADAPTER": "runs/q", "SAC_RATIO": "4"}
    indexed = sac("index", "docs", "--library", "q.lib", **made)
    assert indexed.code == 0, indexed.err
    asked = sac("ask", "Where is the spare key?", "--library", "q.lib", "--json", "-k", "2", SAC_DTYPE="float32")
    assert asked.code == 0, asked.err
    assert len(asked.json["sources"]) == 2 and asked.json["usage"]["completion_tokens"] > 0


def test_a_family_that_is_not_read_is_refused_before_training(sac: Sac, data: str) -> None:
    from tests.conftest import byte_tokenizer, tiny_model

    for saved in (tiny_model("mistral", sliding_window=64), byte_tokenizer()):
        saved.save_pretrained("mistral")
    done = sac("train", data, "-o", "runs/m", "--base", "mistral", *SMALL)
    assert done.code != 0 and "Mistral model whose layers attend a sliding window of 64 tokens" in done.err
    assert not Path("runs/m").exists()
