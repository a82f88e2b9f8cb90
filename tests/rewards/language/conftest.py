"""Folders of small models, none of which a test changes, and pairs with a known preference."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rewards.language.small_models import small_bert, small_llama, small_llava, small_qwen

MAKERS: dict[str, Callable[[Path], Path]] = {
    "llama": small_llama,
    "bert": small_bert,
    "llava": small_llava,
    "qwen": small_qwen,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("language-models")
    return {name: make(root / name) for name, make in MAKERS.items()}
