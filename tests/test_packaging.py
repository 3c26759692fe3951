"""The package is whole: setup.cfg names everything on disk, and a wheel works without the clone."""

from __future__ import annotations

import configparser
import importlib.util
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"minitorch_peft": ROOT / "minitorch_peft", "minitorch_peft.kernels": ROOT / "kernels"}


@pytest.fixture(scope="module")
def options():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def files():
    """(package, file) of everything in the folders that are installed."""
    for top, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield ".".join([top, *path.parent.relative_to(folder).parts]), path


def test_setup_cfg_lists_the_packages_on_disk(options):
    listed = options["options"]["packages"].split()
    on_disk = {package for package, path in files() if path.suffix == ".py"}
    assert sorted(listed) == sorted(on_disk)
    assert all((path.parent / "__init__.py").exists() for _, path in files() if path.suffix == ".py")


def test_setup_cfg_lists_every_other_file(options):
    data = {p: [x.strip() for x in globs.split(",")] for p, globs in options["options.package_data"].items()}
    for package, path in files():
        if path.suffix != ".py":
            listed = [
                f"{name}: {glob}"
                for name, globs in data.items()
                for glob in globs
                if fnmatch(str(path), str(FOLDERS["minitorch_peft"].joinpath(*name.split(".")[1:], glob)))
            ]
            assert listed, f"{path} ({package}) is not in setup.cfg's package_data"


@pytest.mark.parametrize("folder", ["/", ROOT], ids=["elsewhere", "clone"])
def test_the_kernels_are_found_from_any_folder(folder):
    code = "import minitorch_peft.kernels as k, minitorch_peft as m; print(k.__file__); print(m.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        str(f / "__init__.py") for f in (FOLDERS["minitorch_peft.kernels"], FOLDERS["minitorch_peft"])
    ]


def test_the_kernels_have_one_name():
    """Imported from the clone's folder as ``kernels``, they would leave cached code that nothing else can load."""
    program = [sys.executable, "-c", "import kernels"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "the package minitorch_peft.kernels; it was imported as 'kernels'" in done.stderr


def test_no_test_sees_the_folder_as_a_package_called_kernels():
    found = importlib.util.find_spec("kernels")
    assert found is None or ROOT not in Path(found.origin or "").parents


PROGRAM = """
import importlib, pkgutil, sys
from pathlib import Path
import numpy as np
import minitorch_peft
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.models.pretrained import embedded_names

here = Path(sys.argv[1])
names = [m.name for m in pkgutil.walk_packages(minitorch_peft.__path__, "minitorch_peft.")]
for name in names:
    if not name.endswith(".triton"):
        assert here in Path(importlib.import_module(name).__file__).parents, name
model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
ids = np.arange(10).reshape(2, 5)
model(ids, labels=ids).loss.backward()
assert all(p.grad is not None for p in model.parameters())
for name in embedded_names():
    GPT.from_pretrained(name).generate(ids, 2)
print(len(names), *embedded_names())
"""


@pytest.mark.slow
def test_a_wheel_works_in_another_folder(tmp_path, options):
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    for folder in ("minitorch_peft", "kernels"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", installed, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    tops = {path.name for path in installed.iterdir() if path.is_dir() and not path.name.endswith(".dist-info")}
    assert tops <= {"minitorch_peft", "bin"}
    environment = {"PYTHONPATH": str(installed), "HOME": str(tmp_path)}
    program = [sys.executable, "-c", PROGRAM, installed]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, *names = done.stdout.split()
    assert int(count) > len(options["options"]["packages"].split())
    assert names == sorted(p.stem for p in (ROOT / "minitorch_peft" / "models" / "checkpoints").glob("*.safetensors"))
