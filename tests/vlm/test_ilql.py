"""ILQL learns from judged answers which tokens are worth more, answers by that, and goes on after a kill as if never killed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from tests.vlm.helpers import assert_same_run, pictures, write_rows
from vlm.generate import GenerateConfig, generate
from vlm.ilql import ILQLConfig, as_tokens, train, validate
from vlm.judged_answers import read_judged
from vlm.policy import VisionLanguagePolicy
from vlm.preference_data import hold_out
from vlm.value_heads import VALUES, ValueHeads, generate_with_values

COMMON: dict[str, Any] = {"epochs": 3, "learning_rate": 5e-3, "train_batch_size": 4, "lora_rank": 4, "validation": 0.3,
                          "target_rate": 0.1}  # fmt: skip


def judged(folder: Path, count: int = 6) -> Path:
    """About each picture four answers: the more A and the fewer B, the better."""
    worth = {"A A": 2.0, "A B": 0.0, "B A": 0.0, "B B": -2.0}
    names = pictures(folder, count)
    rows = [
        {"prompt": "What?", "image": name, "answer": answer, "reward": reward}
        for name in names
        for answer, reward in worth.items()
    ]
    return write_rows(rows, folder / "judged.jsonl")


def marked(folder: Path) -> Path:
    """An answer whose second part misleads, and one of which nothing is marked."""
    (name,) = pictures(folder, 1)
    row = {"prompt": "What?", "image": name, "answer": "A B A. B", "segments": [
        {"start": 0, "end": 6, "tag": "correct"}, {"start": 7, "end": 8, "tag": "misleading"}]}  # fmt: skip
    return write_rows([row, {"prompt": "Why?", "answer": "B A", "segments": []}], folder / "segments.jsonl")


def test_it_learns_what_is_worth_more(small_llava: str, tmp_path: Path) -> None:
    """It imitates good and bad answers alike, and by the values it gives the good ones. Of the state that answers begin from, V
    is what they get on average for an expectile of ½, and nears what the best of them gets, discounted, for a higher one."""
    how = COMMON | {"epochs": 50, "train_batch_size": 24, "validation": 0.0, "learning_rate": 3e-3, "discount": 0.9}
    found, data = [], judged(tmp_path)
    for expectile in (0.5, 0.95):
        out = tmp_path / str(expectile)
        metrics = train(ILQLConfig(small_llava, data=data, out=out, expectile=expectile, save_every=50, **how)).metrics
        assert metrics[-1]["q_loss"] < 0.6 * metrics[0]["q_loss"] and metrics[-1]["nll"] < 0.5 * metrics[0]["nll"]
        policy = VisionLanguagePolicy.load(small_llava, adapter=out)
        heads, weight = ValueHeads.load(out, policy)
        batch = policy.encode([Row("What?", "A A", tmp_path / f"{i}.png") for i in range(6)])
        with torch.no_grad():
            found.append(float(heads.v(policy.states(batch)[:, 0]).mean()))
    best = 2 * 0.9**2  # the mark that ends the answer gets the reward, two tokens later
    assert weight == 1 and abs(found[0]) < 0.4 and 0.4 * best < found[1] < best
    shares, rows = [], [Row("What?", None, tmp_path / f"{i % 6}.png") for i in range(60)]
    for beta in (0.0, 4.0):
        letters = "".join(generate_with_values(policy, heads, rows, weight=beta, seed=0, max_new_tokens=3).texts)
        shares.append(letters.count("A") / (letters.count("A") + letters.count("B")))
    assert 0.2 < shares[0] < 0.6 and shares[1] > 0.8


def test_a_step_of_each_model_and_what_it_measures(model: str, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    config = ILQLConfig(
        model, data=judged(tmp_path), out=tmp_path / "run", **COMMON | {"epochs": 1, "train_batch_size": 64}
    )
    result = train(config, on_epoch=seen.append)
    assert result.metrics == seen
    assert {VALUES, "adapter_model.safetensors"} <= {path.name for path in config.out.iterdir()}
    (line,) = seen
    vocabulary = VisionLanguagePolicy.load(model).network.get_output_embeddings().weight.shape[0]
    # before the first update all values are 0
    _, held = hold_out([answer.unit for answer in read_judged(config.data)], 0.3, 0)
    tokens = as_tokens(VisionLanguagePolicy.load(model), read_judged(config.data), config)
    learnt = [i for i in range(24) if i not in held]
    lengths = torch.tensor([len(tokens.tokens[i]) for i in learnt])
    q_loss = 2 * float(tokens.rewards[learnt].square().sum() / lengths.sum())
    assert line["q_loss"] == pytest.approx(q_loss) and line["value_loss"] == line["value"] == line["q"] == 0
    conservative = 2 * float(torch.tensor(float(vocabulary)).log())
    assert line["conservative_loss"] == pytest.approx(conservative)
    assert line["loss"] == pytest.approx(q_loss + 0.1 * conservative + line["nll"], rel=1e-5)
    assert (line["answers"], line["too_long"], line["updates"], line["reward_mean"]) == (len(learnt), 0, 1, 0)
    assert line["validation_q_loss"] < 10 and "validation_nll" in line


def test_parts_of_an_update_give_the_same(small_llava: str, tmp_path: Path) -> None:
    data = marked(tmp_path)
    how = COMMON | {"epochs": 2, "validation": 0.0}
    lines = [
        train(ILQLConfig(small_llava, data=data, out=tmp_path / str(size), micro_batch_size=size, **how)).metrics
        for size in (None, 1)
    ]
    for name in ("loss", "q_loss", "value_loss", "conservative_loss", "nll", "grad_norm"):
        assert [line[name] for line in lines[1]] == pytest.approx([line[name] for line in lines[0]], rel=1e-3, abs=1e-6)


def test_resumed_equals_never_killed(small_llava: str, tmp_path: Path) -> None:
    data = judged(tmp_path)
    whole = train(ILQLConfig(small_llava, data=data, out=tmp_path / "whole", **COMMON))

    def kill(line: dict[str, Any]) -> None:
        if line["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(ILQLConfig(small_llava, data=data, out=tmp_path / "killed", **COMMON), on_epoch=kill)
    resumed = train(ILQLConfig(small_llava, data=data, out=tmp_path / "killed", resume=True, **COMMON))
    assert_same_run(resumed, whole)
    one, other = (load_file(run.out / VALUES) for run in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    other_rewards = [json.loads(line) | {"reward": 1.0} for line in data.read_text().splitlines()]
    changed = write_rows(other_rewards, data)
    with pytest.raises(UserError, match="holds a run with other settings"):
        train(ILQLConfig(small_llava, data=changed, out=tmp_path / "killed", resume=True, **COMMON))


def test_marks_are_rewards_of_tokens(small_llava: str, tmp_path: Path) -> None:
    policy, data = VisionLanguagePolicy.load(small_llava), marked(tmp_path)
    config = ILQLConfig(small_llava, data=data, out=tmp_path / "run")
    found = as_tokens(policy, read_judged(data), config)
    # "A", " B", " A", ".", " B", the end
    assert found.rewards.tolist() == [[0, 0, 0, 1, -1, 0], [0] * 6] and list(map(len, found.tokens)) == [6, 3]
    assert found.tokens[0][-1] in policy.ends
    at_end = as_tokens(policy, read_judged(data, unmarked_correct=True), ILQLConfig(
        small_llava, data=data, out=tmp_path / "run", reward_at="end"))  # fmt: skip
    assert at_end.rewards.tolist() == [[0] * 6, [0, 0, 1, 0, 0, 0]]


def test_the_command_answers_by_the_values(small_llava: str, tmp_path: Path) -> None:
    """Those beside an adapter, and those beside all weights of a model."""
    data = judged(tmp_path, 2)
    rows = [{"prompt": "What?", "image": "0.png"}, {"prompt": "What?", "image": "1.png"}]
    prompts = write_rows(rows, tmp_path / "prompts.jsonl")
    for rank in (4, 0):
        out = tmp_path / str(rank)
        train(ILQLConfig(small_llava, data=data, out=out, value_weight=50.0, **COMMON | {"lora_rank": rank}))
        given: dict[str, Any] = {"model": small_llava, "adapter": out} if rank else {"model": str(out / "model")}
        policy = VisionLanguagePolicy.load(**given)
        heads, _ = ValueHeads.load(out if rank else out / "model", policy)
        asked = [Row("What?", None, tmp_path / f"{i}.png") for i in range(2)]
        how: dict[str, Any] = {"seed": 0, "temperature": 0.0, "max_new_tokens": 4}
        for weight, used in ((None, 50.0), (0.0, 0.0), (7.0, 7.0)):
            file = tmp_path / f"{rank} {weight}.jsonl"
            generate(GenerateConfig(prompts=prompts, out=file, value_weight=weight, max_new_tokens=4, **given))
            told = [json.loads(line)["response"] for line in file.read_text().splitlines()]
            assert told == generate_with_values(policy, heads, asked, weight=used, **how).texts
            assert used or told == policy.generate(asked, **how).texts
    without: dict[str, Any] = {"model": small_llava, "prompts": prompts, "out": tmp_path / "without.jsonl"}
    with pytest.raises(
        UserError, match="--value-weight got 1, but .* holds no values.safetensors: give the folder of a"
    ):
        generate(GenerateConfig(value_weight=1.0, **without))
    with pytest.raises(UserError, match="--value-weight got -1.0, allowed is 0 or more, or leave it out"):
        generate(GenerateConfig(value_weight=-1.0, **without))
    assert not (tmp_path / "without.jsonl").exists()


def test_rewards_that_are_all_alike_are_told(
    small_llava: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) | {"reward": 1.0} for line in judged(tmp_path, 1).read_text().splitlines()]
    data = write_rows(rows, tmp_path / "flat.jsonl")
    config = ILQLConfig(small_llava, data=data, out=tmp_path / "run", **COMMON | {"epochs": 1})
    assert train(config).metrics[0]["problems"] == ["flat reward"]
    assert "all answers have nearly the same reward (1 ± 0)" in capsys.readouterr().err


def test_bad_input_is_told_in_one_line(small_llava: str, tmp_path: Path) -> None:
    good: dict[str, Any] = {"model": small_llava, "data": judged(tmp_path), "out": tmp_path / "run", **COMMON}
    for change, words in (
        ({"expectile": 1.0}, "--expectile got 1.0, allowed is above 0 and below 1"),
        ({"discount": 1.1}, "--discount got 1.1, allowed is 0 up to 1"),
        ({"target_rate": 0.0}, "--target-rate got 0.0, allowed is above 0 up to 1"),
        ({"conservative_weight": -1.0}, "--conservative-weight got -1.0, allowed is 0 or more"),
        ({"imitation_weight": -1.0}, "--imitation-weight got -1.0, allowed is 0 or more"),
        ({"value_weight": -1.0}, "--value-weight got -1.0, allowed is 0 or more"),
        ({"validation": 1.0}, "--validation got 1.0, allowed is 0 up to, but not, 1"),
        ({"kl_budget": 2.0}, "--kl-budget got 2, but learning from given answers measures no KL"),
        ({"max_length": 20}, "24 of 24 answers are longer than the 20 tokens that are read"),
        ({"max_length": 20, "too_long": "drop"}, "no answer of .* fits into 20 tokens"),
        ({"data": tmp_path / "none.jsonl"}, "cannot read .*none.jsonl"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            train(ILQLConfig(**good | change))
        assert not (tmp_path / "run").exists()


def test_the_command_line_has_the_papers_defaults(tmp_path: Path) -> None:
    given = ["--model", "tiny-llava", "--data", "a.jsonl", "--out", str(tmp_path)]
    config = parse(ILQLConfig, given, "mmrlhf vlm ilql")
    assert (config.expectile, config.discount, config.conservative_weight, config.imitation_weight) == (
        0.7,
        0.99,
        0.1,
        1,
    )
    validate(config)
