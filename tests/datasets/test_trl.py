"""TRL's preference columns, in all the forms that TRL takes."""

from pathlib import Path
from typing import Any

import pytest

from mmrlhf.answers import AnswerPair, read_answer_pairs
from mmrlhf.datasets import reader
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.datasets.rows import Fault, Row
from mmrlhf.images import content_hash
from tests.datasets.files import jsonl, parquet, picture, touch


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


BLUE, GREEN = "It is blue.", "It is green."
ASKED = "What color is the sky?"


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, ("The sky is", " blue.", " green.")),
        ({"chosen": "The sky is grey.", "rejected": "The sky is green."}, ("The sky is", " grey.", " green.")),
        ({"chosen": "Who?\nAnn", "rejected": "Who?\nBob"}, ("Who?", "\nAnn", "\nBob")),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: same x", "rejected": "\n\nHuman: a\n\nAssistant: same y"},
            ("\n\nHuman: a\n\nAssistant:", " same x", " same y"),
        ),
        (
            {"prompt": [user(ASKED)], "chosen": [assistant(BLUE)], "rejected": [assistant(GREEN)]},
            (ASKED, BLUE, GREEN),
        ),
        (
            {"chosen": [user(ASKED), assistant(BLUE)], "rejected": [user(ASKED), assistant(GREEN)]},
            (ASKED, BLUE, GREEN),
        ),
        (
            {"prompt": ASKED, "chosen": [user(ASKED), assistant(BLUE)], "rejected": [user(ASKED), assistant(GREEN)]},
            (ASKED, BLUE, GREEN),
        ),
        ({"prompt": ASKED, "chosen": [assistant(BLUE)], "rejected": [assistant(GREEN)]}, (ASKED, BLUE, GREEN)),
        (
            {
                "prompt": [user("a"), assistant("b"), user("c")],
                "chosen": [assistant("x")],
                "rejected": [assistant("y")],
            },
            ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " x", " y"),
        ),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_form_of_a_row(row: dict[str, Any], pair: tuple[str, str, str], kind: str, tmp_path: Path) -> None:
    source = (jsonl if kind == "jsonl" else parquet)([row | {"margin": 0.5}], tmp_path / f"x.{kind}")
    (found,) = reader("trl")(source, None)
    assert isinstance(found, Row) and found.judgement == AnswerPair(*pair, 1.0, margin=0.5)


def test_images_are_kept_once_under_their_content_hash(tmp_path: Path) -> None:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
    sides = {
        "chosen": [assistant([{"type": "text", "text": "A"}])],
        "rejected": [assistant([{"type": "text", "text": "B"}])],
    }
    data = picture(1)
    other = {"chosen": sides["rejected"], "rejected": [assistant([{"type": "text", "text": "C"}])]}
    rows = [
        {"prompt": [user(parts)], **sides, "images": [{"bytes": data, "path": "x.jpg"}]},
        {"prompt": [user(parts)], **other, "images": [{"bytes": data, "path": None}]},
    ]
    source = parquet(rows, tmp_path / "x.parquet")
    assert import_data(ImportConfig("trl", source, tmp_path / "out")) == 2
    first, second = read_answer_pairs(tmp_path / "out" / "answers.jsonl")
    assert first.image == second.image == tmp_path / "out" / "images" / f"{content_hash(data)}.jpg"
    assert first.image.read_bytes() == data and (first.prompt, first.answer_0, first.answer_1) == (
        "What is it?",
        "A",
        "B",
    )


def test_an_image_may_be_a_path_in_a_column_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    source = jsonl([{"prompt": "p", "chosen": "a", "rejected": "b", "image": "a.png"}], tmp_path / "x.jsonl")
    assert import_data(ImportConfig("trl", source, tmp_path / "out")) == 1
    (pair,) = read_answer_pairs(tmp_path / "out" / "answers.jsonl")
    assert pair.image == tmp_path / "a.png"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prompt": None, "chosen": "abc", "rejected": "abd"}, "share no beginning"),
        ({"chosen": None}, "chosen got None"),
        ({"chosen": "b"}, "compares an answer with itself"),
        ({"chosen": " "}, "chosen got ' '"),
        ({"margin": -1.0}, "margin got -1.0"),
        ({"margin": float("nan")}, "margin got nan"),
        ({"images": ["a.png", "a.png"]}, "images holds 2 images, allowed is one"),
        ({"images": ["gone.png"]}, "no file"),
        ({"image": 3}, "image got 3, allowed are an image's bytes"),
        (
            {"prompt": [user("p")], "chosen": [assistant("a"), user("b")], "rejected": [assistant("c")]},
            "chosen has 2 mess",
        ),
        (
            {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": [user("c")]},
            "allowed is one of the assistant",
        ),
        ({"prompt": [{"role": "tool", "content": "x"}], "chosen": [assistant("a")], "rejected": []}, "role 'tool'"),
        ({"chosen": [assistant(3)], "rejected": [assistant("a")]}, "content 3"),
        ({"chosen": [assistant("b")], "rejected": "c"}, "rejected got 'c', allowed is a list of messages"),
    ],
)
def test_a_bad_row_is_a_fault_with_its_row(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    good: dict[str, Any] = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = list(reader("trl")(jsonl([good, good | change], tmp_path / "x.jsonl"), None))
    assert isinstance(rows[0], Row) and isinstance(rows[1], Fault)
    assert problem in rows[1].problem and rows[1].where.endswith("row 2")
