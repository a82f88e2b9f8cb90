"""The wheel and the sdist: exactly the five packages, with the models, and no other distribution's names."""

import importlib.metadata
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"mmrlhf", "diffusion", "vlm", "selection", "apps"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist and the wheel, built from the working tree with hatchling as it is installed (no download)."""
    folder = tmp_path_factory.mktemp("dist")
    for target in ("--sdist", "--wheel"):
        command = [sys.executable, "-m", "build", "--no-isolation", target, "--outdir", str(folder), str(ROOT)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return {"sdist": next(folder.glob("*.tar.gz")), "wheel": next(folder.glob("*.whl"))}


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout that holds nothing but the installed wheel."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(built["wheel"])], check=True, capture_output=True)
    return target


def package_files() -> set[str]:
    """What git would ship of the five packages: tracked files, and new ones that are not ignored; all files without git."""
    command = f"git -C {ROOT} ls-files --cached --others --exclude-standard -z".split() + sorted(PACKAGES)
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
        listed = [path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts]
    return {name for name in listed if name and (ROOT / name).is_file()}


def test_the_wheel_installs_exactly_the_five_packages(installed: Path) -> None:
    top = {path.name for path in installed.iterdir()} - {"bin", "Scripts"}  # the console script
    information = {name for name in top if name.endswith(".dist-info")}
    assert top - information == PACKAGES
    assert len(information) == 1


def test_the_wheel_holds_every_file_of_the_packages(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == package_files()  # code, py.typed, and the weights of the tiny models


def test_the_sdist_holds_the_packages_the_tests_and_the_documents(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    assert package_files() <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "CHANGELOG.md", "tests/conftest.py"} <= names
    assert {name.partition("/")[0] for name in names if name.endswith(".py")} <= PACKAGES | {
        "tests",
        "benchmarks",
        "docs",
    }


def test_the_installed_package_runs_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(installed)!r}); sys.argv = ['mmrlhf', '--version']\n"
    program += "import mmrlhf.cli; print(mmrlhf.__file__); mmrlhf.cli.main()"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    file, version = done.stdout.splitlines()
    assert Path(file).is_relative_to(installed)
    assert version == f"mmrlhf {importlib.metadata.PathDistribution.at(next(installed.glob('*.dist-info'))).version}"


def test_the_console_script_is_declared(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        scripts = next(name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
        assert "mmrlhf = mmrlhf.cli:main" in wheel.read(scripts).decode()


def test_no_other_distribution_owns_our_names() -> None:
    owners = importlib.metadata.packages_distributions()
    assert "pytest" in owners  # the table is not empty
    taken = {name: set(owners.get(name, [])) - {"mmrlhf"} for name in PACKAGES}
    assert not any(taken.values()), f"other distributions install packages of the same names: {taken}"
