"""A small random Stable Diffusion folder for all tests of the package."""

from pathlib import Path

import pytest

from tests.small_models import small_stable_diffusion


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small-sd"
    small_stable_diffusion(folder)
    return folder
