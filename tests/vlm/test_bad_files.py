"""Files of answers and prompts that cannot be learnt from: one line says why, before a run claims its folder."""

from pathlib import Path
from typing import Any

import pytest

from mmrlhf.errors import UserError
from tests.vlm.helpers import broken_jpeg, comparisons, pictures, write_rows
from vlm import dense_dpo, dpo, ilql, ppo, sft
from vlm.answer_rewards import Judgement, judged, named_reward
from vlm.preference_data import read_answers, read_choices, read_prompts

ROW: dict[str, Any] = {"prompt": "What?", "answer": "A B", "image": "0.png"}


def file_of(folder: Path, *rows: dict[str, Any]) -> Path:
    """Rows beside two pictures."""
    pictures(folder, 2)
    return write_rows(rows, folder / "rows.jsonl")


def test_separators_of_unicode_end_no_line(tmp_path: Path) -> None:
    """JSON may hold U+2028 and U+0085 as they are; only a line feed ends a row."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a\u2028b", "answer": "c\u0085d"}\n', encoding="utf-8")
    (row,) = read_answers(file)
    assert (row.prompt, row.answer) == ("a\u2028b", "c\u0085d") and read_prompts(file)[0].prompt == "a\u2028b"


def test_bad_rows_are_told(tmp_path: Path) -> None:
    for rows, words in (
        ([{"question": "a", "text": "b"}], 'row 1 lacks prompt, answer: write {"prompt": …, "answer": …, "image": …}'),
        ([ROW, ROW | {"answer": "x\ud800"}], "row 2: answer got 'x.ud800', allowed is a text"),
        ([{"item": "run-7", "steps": 20, "segments": []}], "item 'run-7' is of steps, allowed are answers"),
        ([{"prompt": "a", "answer": "b", "segments": [{"start": 0, "end": 1, "tag": "misleading", "correction": ""}]}],
         "no answer of which its corrections leave anything"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            read_answers(file_of(tmp_path, *rows))
    with pytest.raises(
        UserError, match="row 1 has the columns prompt, answer, image, allowed are comparisons .* or marked"
    ):
        read_choices(file_of(tmp_path, ROW))


def test_nothing_is_written_for_a_mark_of_a_picture_in_an_answer(small_llava: str, tmp_path: Path) -> None:
    out, file = tmp_path / "run", file_of(tmp_path, ROW, ROW | {"answer": "A <image> B"})
    with pytest.raises(UserError, match="'A <image> B' holds <image>, which stands for a picture: remove it"):
        sft.train(sft.SFTConfig(small_llava, out, data=file))
    assert not out.exists()


def test_nothing_is_written_for_a_template_that_moves_the_answer(small_llava: str, tmp_path: Path) -> None:
    out, how = tmp_path / "run", "{answer} {prompt}"
    data, rewarded = file_of(tmp_path, ROW), write_rows([ROW | {"reward": 1.0}], tmp_path / "judged.jsonl")
    with pytest.raises(UserError, match="does not put the answer after the prompt"):
        sft.train(sft.SFTConfig(small_llava, out, data=data, template=how))
    with pytest.raises(UserError, match="does not put the answer after the prompt"):
        ilql.train(ilql.ILQLConfig(small_llava, out, data=rewarded, template=how))
    with pytest.raises(UserError, match="does not put the answer after the prompt"):
        dpo.train(dpo.DPOConfig(small_llava, out, data=comparisons(tmp_path), template=how))
    assert not out.exists()


def test_nothing_is_written_for_a_picture_that_ends_in_the_middle(small_llava: str, tmp_path: Path) -> None:
    """Its header tells a size, so that only reading it to the end shows it."""
    out, data = tmp_path / "run", comparisons(tmp_path)
    data.write_text(data.read_text().replace("5.png", broken_jpeg(tmp_path / "cut.jpg").name))
    with pytest.raises(UserError, match="cut.jpg is not a readable image"):
        dense_dpo.train(dense_dpo.DenseDPOConfig(small_llava, out, data=data))
    prompts = file_of(tmp_path, *[{"prompt": "What?", "image": name} for name in ("0.png", "cut.jpg")])
    with pytest.raises(UserError, match="cut.jpg is not a readable image"):
        ppo.train(ppo.PPOConfig(small_llava, out, prompts=prompts, reward="m:f", max_new_tokens=4), reward=short)
    assert not out.exists()


def test_what_is_too_long_is_one_line(
    small_llava: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    data = file_of(tmp_path, ROW | {"answer": "A B " * 3000})
    with pytest.raises(UserError, match="1 of 1 answers are longer than the .* tokens that are read"):
        sft.train(sft.SFTConfig(small_llava, tmp_path / "run", data=data))
    assert "longer than the specified maximum" not in capfd.readouterr().err + caplog.text


def short(rows: Any) -> list[Judgement]:
    """A reward."""
    return [Judgement((), -float(len(row.answer))) for row in rows]


def test_a_function_that_is_no_reward_is_told(tmp_path: Path) -> None:
    rows = read_answers(file_of(tmp_path, ROW, ROW))
    assert [judgement.total for judgement in judged(short, rows)] == [-3, -3]

    def fails(rows: Any) -> Any:
        raise ValueError("two\nlines")

    functions: list[tuple[Any, str]] = [
        (fails, r"the reward failed with ValueError \(two lines\) at test_bad_files.py:\d+: mend it"),
        (lambda rows: [1.0 for _ in rows], "the reward gave a float for an answer, allowed is a list of .*Judgement"),
        (lambda rows: None, "the reward gave a NoneType, allowed is a list"),
        (lambda rows: short(rows)[:1], "the reward gave 1 judgements for 2 answers"),
        (lambda: None, r"the reward failed with TypeError"),
    ]
    for function, words in functions:
        with pytest.raises(UserError, match=words):
            judged(function, rows)
    file = tmp_path / "mine.py"
    file.write_text("def f(rows):\n    return []\n")
    assert named_reward(f"{file}:f")([]) == named_reward(f"python:{file}:f")([]) == []
