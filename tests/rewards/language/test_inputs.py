"""What a model reads: templates, lengths with images, and texts that are too long."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from mmrlhf.errors import UserError
from mmrlhf.images import load_image, save_image
from mmrlhf.rewards.language.inputs import Reader, Row, size_of
from tests.rewards.language.small_models import LENGTH, word_tokenizer


def reader_of(folder: Path, **settings: Any) -> Reader:
    kind = AutoProcessor if (folder / "processor_config.json").exists() else AutoTokenizer
    return Reader.make(kind.from_pretrained(folder), AutoConfig.from_pretrained(folder), **settings)


def test_each_kind_of_model_has_its_template(folders: dict[str, Path]) -> None:
    row = Row("what is it", "a cat")
    llama, bert, llava = (reader_of(folders[name]) for name in ("llama", "bert", "llava"))
    assert llama.text(row) == "<s>user : what is it</s><s>assistant : a cat</s>"
    assert llama.text(Row("what is it")) == "<s>user : what is it</s><s>bot : "
    shown = row._replace(image=torch.rand(3, 8, 8))
    assert llava.text(shown) == "<s>user : <start><image><end>what is it</s><s>assistant : a cat</s>"
    tokens = bert.encode([row, Row("it", "it")])
    assert bert.processor.decode(tokens["input_ids"][0]) == "<s> what is it </s> a cat </s>"
    assert tokens["token_type_ids"].tolist()[1] == [0, 0, 0, 1, 1, 0, 0, 0]
    plain = reader_of(folders["llama"], template="{prompt} : {answer} .")
    assert plain.text(Row("{answer} it", "a {prompt}")) == "{answer} it : a {prompt} ."  # not filled a second time
    assert (
        reader_of(folders["llava"], template="{prompt}\n{answer}").text(shown._replace(answer=None))
        == "<image>\nwhat is it"
    )
    placed = reader_of(folders["llava"], template="user : <image> {prompt} bot : {answer}")
    assert placed.text(shown) == "user : <image> what is it bot : a cat"
    assert placed.text(shown._replace(prompt="<image>what is it")) == "user : <image> what is it bot : a cat"
    assert placed.text(row) == "user :  what is it bot : a cat"


def test_rows_are_padded_on_the_right_whatever_the_tokenizer_says(folders: dict[str, Path]) -> None:
    for name in ("llama", "bert", "llava", "qwen"):
        reader = reader_of(folders[name])
        getattr(reader.processor, "tokenizer", reader.processor).padding_side = "left"
        mask = reader.encode([Row("what is it", "a cat"), Row("it", "a")])["attention_mask"]
        assert mask[1, 0] == 1 and mask[1, -1] == 0, name
        assert mask.sum(1).tolist() == reader.lengths([Row("what is it", "a cat"), Row("it", "a")])


@pytest.mark.parametrize("name", ["llava", "qwen"])
@pytest.mark.parametrize("template", [None, "{prompt} : {answer}"])
def test_lengths_count_the_tokens_of_images(folders: dict[str, Path], name: str, template: str | None) -> None:
    reader = reader_of(folders[name], template=template)
    rows = [Row("what is it", "a cat", torch.rand(3, *size)) for size in ((32, 32), (24, 48), (40, 16))]
    rows.append(Row("what", "the dog"))
    assert reader.lengths(rows) == reader.encode(rows)["attention_mask"].sum(1).tolist()


def test_pictures_come_as_the_processor_reads_the_file(folders: dict[str, Path], tmp_path: Path) -> None:
    """Tensors in [0, 1], file names, and the processor's own reading of the file give the same pixels."""
    generator = torch.Generator().manual_seed(0)
    save_image(torch.rand(3, 40, 56, generator=generator), tmp_path / "a.png")
    for name in ("llava", "qwen"):
        reader = reader_of(folders[name])
        expected = reader.processor(text=["<image>"], images=[Image.open(tmp_path / "a.png")], return_tensors="pt")
        for image in (tmp_path / "a.png", load_image(tmp_path / "a.png")):
            found = reader.encode([Row("what", "a", image)])["pixel_values"]
            torch.testing.assert_close(found, expected["pixel_values"], atol=0, rtol=0)


def test_the_size_of_a_file_is_that_of_its_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "plain.png")
    for name in ("turned.jpg", "plain.png"):
        assert size_of(tmp_path / name) == tuple(load_image(tmp_path / name).shape[1:])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken.png is not a readable image"):
        size_of(tmp_path / "broken.png")


def test_a_placeholder_in_the_text_is_the_image_or_an_error(folders: dict[str, Path]) -> None:
    reader = reader_of(folders["llava"])
    image = torch.rand(3, 32, 32)
    assert reader.text(Row("<image>\nwhat is it", "a cat", image)) == reader.text(Row("what is it", "a cat", image))
    with pytest.raises(UserError, match=r"holds <image> but has no image: give the image, or remove <image>"):
        reader.lengths([Row("<image> what is it", "a cat")])


def test_what_is_too_long_is_refused_cut_at_its_start_or_left_out(folders: dict[str, Path]) -> None:
    rows = [Row("what is it", "a cat"), Row("one two " * 30 + "what is the dog", "a kind red dog .")]
    with pytest.raises(
        UserError, match=r"1 of 2 texts are longer than the 64 tokens that are read \(the longest has 77\)"
    ):
        reader_of(folders["llama"]).fitted(rows)
    fitted, kept = reader_of(folders["llama"], too_long="drop").fitted(rows)
    assert (fitted, kept) == (rows[:1], [0])
    for name in ("llama", "bert"):
        reader = reader_of(folders[name], too_long="truncate", max_length=30)
        fitted, kept = reader.fitted(rows)
        assert fitted[0] == rows[0] and kept == [0, 1]
        assert fitted[1].answer == rows[1].answer and rows[1].prompt.endswith(fitted[1].prompt)
        assert reader.lengths(fitted)[1] == 30


def test_an_image_and_an_answer_are_never_cut(folders: dict[str, Path]) -> None:
    reader = reader_of(folders["llava"], too_long="truncate", max_length=36)
    row = Row("one two " * 30 + "what is it", "a cat", torch.rand(3, 32, 32))
    fitted = reader.fitted([row])[0]
    tokens = reader.encode(fitted)
    assert int((tokens["input_ids"] == reader.processor.image_token_id).sum()) == 16
    assert tokens["attention_mask"].sum() == 36
    with pytest.raises(
        UserError, match=r"the answer 'a cat a cat .* has 2 tokens more than the 36 that are read, even without"
    ):
        reader.fitted([row._replace(answer="a cat " * 6)])


def test_bad_settings(folders: dict[str, Path]) -> None:
    llama = folders["llama"]
    with pytest.raises(UserError, match=f"--max-length got 100, allowed is 1 to the {LENGTH} tokens"):
        reader_of(llama, max_length=LENGTH + 36)
    with pytest.raises(UserError, match="--too-long got 'cut', allowed are refuse, truncate, drop"):
        reader_of(llama, too_long="cut")
    with pytest.raises(UserError, match=r"--template got 'Q: \{prompt\}', allowed is chat, pair, or a text with"):
        reader_of(llama, template="Q: {prompt}")
    with pytest.raises(UserError, match="--template got 'chat', but the model has no chat template"):
        reader_of(folders["bert"], template="chat")
    with pytest.raises(UserError, match="--template got 'pair', which is for encoders"):
        reader_of(folders["llava"], template="pair")


def test_a_picture_that_the_processor_cannot_read(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"the model's processor refuses pictures of 2000×4"):
        reader_of(folders["qwen"]).lengths([Row("what", "a", torch.rand(3, 4, 2000))])


def test_a_tokenizer_without_limit_has_the_model_s(folders: dict[str, Path]) -> None:
    words = word_tokenizer(model_max_length=10**30)
    assert (
        Reader.make(words, AutoConfig.from_pretrained(folders["llama"]), template="{prompt}{answer}").max_length
        == LENGTH
    )
