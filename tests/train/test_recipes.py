"""Recipes: what they hold, and that following one resumes, skips and refuses as it should."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card, read_tensors
from sac_rag.compress.templates import layout_of
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.train import stages
from sac_rag.train.recipes import RECIPES, Recipe, find_recipe
from sac_rag.train.run import run
from sac_rag.train.stages import follow
from tests.conftest import byte_tokenizer, tiny_llama

CPU = {"device": "cpu", "dtype": "float32"}
ABLATIONS = [r for r in RECIPES.values() if r.name.startswith("ablation-")]


@pytest.fixture
def made_by(tiny_base):
    """made_by(recipe, data, output, **more) -> Followed, on the tiny model."""
    return lambda recipe, data, output, **more: follow(recipe, data, output, base=str(tiny_base), **CPU, **more)


def bytes_of(folder):
    return (folder / "adapter.safetensors").read_bytes()


# -- what they hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "large"])
def test_an_adapter_to_ship_chooses_anchors_and_answers_at_four_ratios(name):
    recipe = RECIPES[name]
    *before, qa = recipe.stages
    assert recipe.options == {"selector": "salient", "budget": "learned"}
    assert [s.config.objective for s in before] == ["salience", "budget", "qa" if name == "default" else "lm"]
    assert all(s.config.ratios == (15.0,) for s in before if s.config.objective == "lm")
    assert (qa.config.objective, qa.config.ratios) == ("qa", (2.0, 5.0, 15.0, 51.0))
    assert len(qa.config.own.prompts) >= 4 and {n for n in qa.config.own.prompts if layout_of(byte_tokenizer(), n)}
    assert any(spec.startswith("cloze:") for spec in qa.data)
    for stage in recipe.stages:
        assert sum(float(spec.rpartition("=")[2]) for spec in stage.data) == pytest.approx(1.0)


def test_full_ft_is_the_same_shape_reading_the_whole_text():
    stages, default = RECIPES["full-ft"].stages, RECIPES["large"].stages[-1]
    assert RECIPES["full-ft"].lora.whole and {s.config.ratios for s in stages} == {(1.0,)}
    assert dataclasses.replace(RECIPES["full-ft"].lora, whole=False) == RECIPES["default"].lora
    for stage in stages:
        assert {spec.partition("=")[0] for spec in stage.data} <= {spec.partition("=")[0] for spec in default.data}
        assert sum(float(spec.rpartition("=")[2]) for spec in stage.data) == pytest.approx(1.0)


def test_ablations_differ_from_their_base_in_what_they_name_alone():
    base = RECIPES["ablation-base"]
    names = {"lm", "quote", "causal", "future", "no-anchor-embedding", "random", "salient", "budget"}
    assert {r.name for r in ABLATIONS} == {base.name, *(f"ablation-{n}" for n in names)}
    for recipe in ABLATIONS:
        assert all(s.config.steps == 300 for s in recipe.stages if s.config.objective in ("qa", "lm"))
        assert all(s.config.seed == 0 for s in recipe.stages)
        plain = dataclasses.replace(recipe, name=base.name, about=base.about, options=base.options)
        if recipe.name == "ablation-lm":
            assert recipe.stages[0].config.objective == "lm"
            plain = dataclasses.replace(plain, stages=recipe.stages[1:])
        if recipe.name == "ablation-salient":
            assert recipe.stages[0].config.objective == "salience" and recipe.options == {"selector": "salient"}
            plain = dataclasses.replace(plain, stages=recipe.stages[1:])
        if recipe.name == "ablation-budget":
            assert recipe.stages[0].config.objective == "budget" and recipe.options == {"budget": "learned"}
            plain = dataclasses.replace(plain, stages=recipe.stages[1:])
        if recipe.name == "ablation-quote":
            (qa,), (questions,) = recipe.stages, base.stages
            *same, quoted = qa.data
            assert quoted.startswith("quote:lm/") and tuple(same) == questions.data
            plain = dataclasses.replace(plain, stages=(dataclasses.replace(qa, data=questions.data),))
        if recipe.name == "ablation-future":
            (qa,) = recipe.stages
            assert (qa.config.own.future_from, qa.config.own.future_steps) == (-8.0, 150)
            plain = dataclasses.replace(
                plain, stages=(dataclasses.replace(qa, config=qa.config.changed(future_from=0.0)),)
            )
        assert plain == base
    told = [(r.options, r.stages) for r in ABLATIONS]
    assert all(a != b for i, a in enumerate(told) for b in told[:i])


@pytest.mark.parametrize("recipe", ABLATIONS, ids=lambda r: r.name)
def test_their_options_are_taken_by_the_method(recipe):
    lora = {"rank": 2, "alpha": 4.0, "targets": ["q_proj"]}
    card = Card("tiny", "0", recipe.method, (5.0,), lora=lora, options=dict(recipe.options))
    method = adapter.build(tiny_llama(), byte_tokenizer(), card)
    contexts = [[list(range(5, 60))]]
    ((kv,),) = method.write(contexts, [5.0])
    plain = adapter.build(tiny_llama(), byte_tokenizer(), dataclasses.replace(card, options={}))
    ((base,),) = plain.write(contexts, [5.0])
    changed = recipe.name in ("ablation-causal", "ablation-random")
    assert torch.equal(kv.values, base.values) is not changed
    assert method.parameters()["anchor_embedding"].requires_grad is (recipe.name != "ablation-no-anchor-embedding")


def test_scaling_shrinks_steps_and_all_that_is_counted_in_them():
    *_, lm, qa = RECIPES["large"].scaled(0.01).stages
    assert (lm.config.steps, lm.config.warmup, qa.config.steps) == (40, 1, 30)
    future = RECIPES["ablation-future"].scaled(0.001).stages[0].config
    assert (future.steps, future.own.future_steps) == (1, 1)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="scale of the steps is"):
            RECIPES["default"].scaled(bad)


def test_regrouping_keeps_the_tokens_of_a_step():
    for recipe in RECIPES.values():
        for tokens in (500, 4096, 100_000):
            for stage, other in zip(recipe.stages, recipe.regrouped(tokens).stages, strict=True):
                a, b = stage.config, other.config
                assert 0 <= b.step_tokens * b.accumulate - a.step_tokens * a.accumulate < b.accumulate
                assert b.accumulate == 1 or b.step_tokens <= 1.5 * tokens
                assert dataclasses.replace(b, step_tokens=a.step_tokens, accumulate=a.accumulate) == a


OWN = """
data.mine = ["mine.jsonl=1"]
settings.quick = { steps = 7, prompts = ["chat"] }
[recipes.mine]
base = "tiny"
lora = { rank = 3 }
change.qa = { like = "quick", data = "mine", learning_rate = 1 }
"""


def test_a_file_of_ones_own_may_build_on_what_is_there(tmp_path):
    (tmp_path / "mine.toml").write_text(OWN)
    recipe, tiny = find_recipe(str(tmp_path / "mine.toml")), RECIPES["tiny"]
    *same, qa = recipe.stages
    assert recipe.name == "mine" and recipe.lora.rank == 3 and recipe.options == tiny.options
    assert tuple(same) == tiny.stages[:-1] and qa.data == ("mine.jsonl=1",)
    assert (qa.config.steps, qa.config.learning_rate, qa.config.step_tokens) == (3, 1, 256), "what a stage says, stays"
    (tmp_path / "two.toml").write_text(OWN + '[recipes.other]\nbase = "tiny"\n')
    with pytest.raises(ConfigError, match=r"two\.toml holds 2 recipes \(mine, other\); give a file with one"):
        find_recipe(str(tmp_path / "two.toml"))
    with pytest.raises(ConfigError, match=r"nowhere\.toml is no file of recipes \(.*No such file"):
        find_recipe("nowhere.toml")


@pytest.mark.parametrize("kind", ["fifo", "deep"])
def test_a_file_that_neither_hangs_nor_crashes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.toml"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_text("data = " + "[" * 100_000 + "]" * 100_000)
    said = {"fifo": "it is not a regular file", "deep": "it is nested too deep"}[kind]
    with pytest.raises(ConfigError, match=rf"mine\.toml is no file of recipes \({said}\)"):
        find_recipe(str(path))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lora = { rank = 3 }", "lora = { rnk = 3 }", r"recipe mine, lora has 'rnk'; use rank, alpha"),
        ("rank = 3", 'rank = "3"', r"lora: rank is '3', not int"),
        ("learning_rate = 1", 'learning_rate = "1"', r"recipe mine, stage qa: learning_rate is '1', not float"),
        ("learning_rate = 1", "stps = 1", r"stage qa has 'stps'; use .*steps"),
        ("learning_rate = 1", "ratios = 5.0", r"stage qa: ratios is 5\.0, not tuple\[float, \.\.\.\]"),
        ("learning_rate = 1", "steps = -1", r"steps -1"),
        ("rank = 3", "rank = true", r"lora: rank is True, not int"),
        ('base = "tiny"', 'base = "mine"', r"recipe mine has not the form of those in .*recipes\.toml: RecursionError"),
        ('base = "tiny"', 'stages = ["qa"]', r"recipe mine has not the form of those in"),
        ('data = "mine"', 'data = ["cloze:/etc/passwd=1"]', r"names 'cloze:/etc/passwd=1'; files are named relative"),
        ('data = "mine"', 'more = ["qa/../../a.txt"]', r"names 'qa/\.\./\.\./a\.txt'; files are named relative"),
        ('data = "mine"', 'data = "yours"', r"stage qa names the data 'yours', which is not there; use .*mine"),
        ('like = "quick"', 'like = "slow"', r"names the settings 'slow', which is not there; use .*quick"),
        ('base = "tiny"', 'base = "huge"', r"names the recipe 'huge', which is not there; use .*tiny"),
        ('base = "tiny"', "", r"changes qa, which is no stage of its base None"),
        ("change.qa", "change.qu", r"changes qu, which is no stage of its base tiny"),
        ("[recipes.mine]", "[recipe.mine]", r"mine\.toml has 'recipe'; use data, settings, recipes"),
        ('base = "tiny"', "base = ", r"mine\.toml is no file of recipes \("),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_place(tmp_path, old, new, said):
    assert old in OWN
    (tmp_path / "mine.toml").write_text(OWN.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        find_recipe(str(tmp_path / "mine.toml"))


def test_a_pattern_shares_its_weight_among_its_files(data_folder):
    recipe = Recipe("r", "", (dataclasses.replace(RECIPES["tiny"].stages[0], data=("lm/train-*.jsonl.gz=3",)),))
    ((first, second),) = recipe.files(data_folder)
    assert first == f"{data_folder}/lm/train-00.jsonl.gz=1.5" and second.endswith("lm/train-01.jsonl.gz=1.5")


def test_a_stage_may_change_options_for_itself_and_those_behind_it(data_folder, made_by, tmp_path):
    (first, *_, last), sharp = RECIPES["tiny"].stages, {"sharpness": 0.15}
    stages = (first, dataclasses.replace(last, options=sharp), dataclasses.replace(last, name="more"))
    recipe = dataclasses.replace(RECIPES["tiny"], stages=stages)
    made = made_by(recipe, data_folder, tmp_path / "out")
    before = Card.read(tmp_path / "out/1-salience").options
    assert before == recipe.options and made.card.options == {**before, **sharp}
    assert Card.read(tmp_path / "out/2-qa").options == {**before, **sharp}
    with pytest.raises(ConfigError, match=r"holds a run with qa\.options\.sharpness 0\.15, this one has None"):
        made_by(dataclasses.replace(recipe, stages=(first, last, stages[2])), data_folder, tmp_path / "out")


def test_options_whose_tensors_are_missing_are_refused(data_folder, tiny_base, tmp_path):
    qa = RECIPES["tiny"].stages[-1]
    (files,) = dataclasses.replace(RECIPES["tiny"], stages=(qa,)).files(data_folder)
    run(files, tmp_path / "even", qa.config, base=str(tiny_base), **CPU)
    with pytest.raises(AdapterError, match=r"even: tensors do not fit its card \(missing \['budget\."):
        run(files, tmp_path / "uneven", qa.config, start_from=tmp_path / "even", options={"budget": "learned"}, **CPU)


def test_what_was_measured_of_an_adapter_is_not_said_of_the_one_trained_from_it(data_folder, tiny_base, tmp_path):
    qa = RECIPES["tiny"].stages[-1]
    (files,) = dataclasses.replace(RECIPES["tiny"], stages=(qa,)).files(data_folder)
    run(files, tmp_path / "first", qa.config, base=str(tiny_base), **CPU)
    card = Card.read(tmp_path / "first")
    dataclasses.replace(card, metrics={"runs": []}, calibration={"5": {"fallback": -1.0}}).write(tmp_path / "first")
    after = run(files, tmp_path / "second", qa.config, start_from=tmp_path / "first", **CPU)
    assert after.metrics == after.calibration == {} and len(after.training["stages"]) == 2


def test_missing_files_are_named_with_their_folder_before_anything_is_made(data_folder, made_by, tmp_path):
    (data_folder / "qa/squad.train.jsonl.gz").unlink()
    with pytest.raises(ConfigError, match=rf"tiny needs qa/squad\.train\.jsonl\.gz, .* {data_folder}; give"):
        made_by(RECIPES["tiny"], data_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"needs qa/squad\.train.*missing too: qa/nq.* lm/train-\*"):
        RECIPES["large"].files(tmp_path)


def test_an_unknown_recipe_is_said_with_those_there_are():
    with pytest.raises(ConfigError, match="unknown recipe 'defualt'; use default, large, full-ft, tiny, ablation-base"):
        find_recipe("defualt")


# -- following one -------------------------------------------------------------------------------------------


def test_a_recipe_that_is_stopped_and_resumed_makes_the_same_bytes(data_folder, made_by, tmp_path, monkeypatch):
    recipe, seen = RECIPES["tiny"], []
    whole = made_by(recipe, data_folder, tmp_path / "whole", listen=lambda s, p: seen.append((s.name, p.step)))
    assert whole.whole and whole.folder == tmp_path / "whole"
    steps = {"salience": 2, "budget": 2, "lm": 2, "qa": 3}
    assert seen == [(stage, step) for stage, n in steps.items() for step in range(1, n + 1)]
    assert Card.read(tmp_path / "whole") == whole.card
    judged = dataclasses.replace(Card.read(whole.folder), calibration={"5": {"fallback": -1.0}})
    judged.write(whole.folder)
    made_by(recipe, data_folder, tmp_path / "whole", listen=lambda s, p: pytest.fail("it is over"))
    assert Card.read(whole.folder) == judged, "what is finished stays as it is"
    whole.card.write(whole.folder)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "whole/4-qa") != bytes_of(tmp_path / "whole/3-lm")
    assert [s["objective"] for s in whole.card.training["stages"]] == ["salience", "budget", "lm", "qa"]
    assert whole.card.ratios == (2.0, 5.0, 15.0, 51.0)

    out = tmp_path / "broken"
    for begun in ("1-salience", "1-salience", "2-budget", "2-budget", "3-lm", "3-lm", "4-qa", "4-qa"):
        stopped = made_by(recipe, data_folder, out, stop=lambda: True)
        assert not stopped.whole and stopped.folder == out / begun and not (out / "card.json").exists()
    made_by(recipe, data_folder, out, stop=lambda: True)  # the last step: nothing is left to stop
    assert bytes_of(out) == bytes_of(tmp_path / "whole")

    monkeypatch.setattr(stages, "run", None)  # finished stages are not even loaded
    assert made_by(recipe, data_folder, out).whole


def test_time_that_runs_out_cuts_stages_short_and_the_last_adapter_is_there(data_folder, made_by, tmp_path):
    done = made_by(RECIPES["tiny"], data_folder, tmp_path / "out", seconds=0.0)
    assert done.whole and bytes_of(tmp_path / "out") == bytes_of(tmp_path / "out/4-qa")
    assert [s["steps_done"] for s in done.card.training["stages"]] == [1, 1, 1, 1]
    before = bytes_of(tmp_path / "out/3-lm")
    more = made_by(RECIPES["tiny"], data_folder, tmp_path / "out")
    assert [s["steps_done"] for s in more.card.training["stages"]] == [1, 1, 1, 3], (
        "the last stage goes on, those before it are built on"
    )
    assert bytes_of(tmp_path / "out/3-lm") == before


def test_another_recipe_or_scale_is_refused_in_the_same_folder(data_folder, made_by, tmp_path):
    recipe = RECIPES["tiny"]
    made_by(recipe, data_folder, tmp_path / "out", stop=lambda: True)
    with pytest.raises(ConfigError, match=r"holds a run with salience.steps 2, this one has 4; use another"):
        made_by(recipe.scaled(2.0), data_folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="recipe 'tiny', this one has 'other'"):
        made_by(dataclasses.replace(recipe, name="other"), data_folder, tmp_path / "out")
    (tmp_path / "out/recipe.json").write_text("{")
    with pytest.raises(ConfigError, match="does not parse"):
        made_by(recipe, data_folder, tmp_path / "out")


def test_a_plan_of_earlier_code_goes_on_where_it_means_the_same(data_folder, made_by, tmp_path):
    """It holds settings that its objectives never read, and lacks those that came later."""
    out, recipe = tmp_path / "out", RECIPES["tiny"]
    made_by(recipe, data_folder, out, stop=lambda: True)
    plan = json.loads((out / "recipe.json").read_text())
    assert plan.pop("qa.near_share") == 0.0 and "lm.recall_weight" not in plan
    (out / "recipe.json").write_text(json.dumps({**plan, "lm.recall_weight": 0.25, "salience.prompts": []}))
    assert not made_by(recipe, data_folder, out, stop=lambda: True).whole
    *same, qa = recipe.stages
    other = dataclasses.replace(qa, config=qa.config.changed(near_share=0.5))
    with pytest.raises(ConfigError, match=r"qa\.near_share 0\.0, this one has 0\.5"):
        made_by(dataclasses.replace(recipe, stages=(*same, other)), data_folder, out)
    with pytest.raises(ConfigError, match=r"holds a run with qa\.data \[.*, this one has None"):
        made_by(dataclasses.replace(recipe, stages=tuple(same)), data_folder, out)


def test_the_ablation_of_the_anchor_embedding_trains_everything_else(data_folder, made_by, tmp_path):
    options, later = RECIPES["ablation-no-anchor-embedding"].options, RECIPES["tiny"].stages[2:]
    recipe = dataclasses.replace(RECIPES["tiny"], options=options, stages=later)
    made_by(recipe, data_folder, tmp_path / "out")
    tensors = read_tensors(tmp_path / "out/adapter.safetensors")
    assert not tensors["anchor_embedding"].any() and any(t.any() for n, t in tensors.items() if "lora_B" in n)
    assert json.loads((tmp_path / "out/card.json").read_text())["options"] == {"mark_anchors": False}
