"""Small data for the training program's tests, without network and without the user's cache."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from jaxclip.train import data
from jaxclip.train.data import sources, tfds_mnist

ROOT = Path(__file__).parents[2]
os.environ.pop("COLUMNS", None)  # set by pytest-xdist, and lines would be wrapped


@pytest.fixture(scope="session")
def mnist_folder():
    """The folder with the four original MNIST files."""
    folder = Path(os.environ.get("JAXCLIP_MNIST", ROOT / "../shared/data/mnist")).resolve()
    if not all((folder / name).is_file() for name in tfds_mnist.FILES):
        pytest.skip("the original MNIST files are not here (set JAXCLIP_MNIST to their folder)")
    return folder


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


WITHOUT_TENSORFLOW = """
    import importlib.machinery, sys

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "tensorflow":
                return importlib.machinery.ModuleSpec(name, self)
        def create_module(self, spec):
            raise ImportError("tensorflow was imported")
        def exec_module(self, module):
            raise AssertionError

    sys.meta_path.insert(0, Refuse())
    from jaxclip.train import data
    print(data.load("mnist", sys.argv[1]).describe())
    assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
"""


def read_without_tensorflow(folder, cache):
    """Reads a folder in a process that cannot import TensorFlow and treats warnings as errors."""
    code = textwrap.dedent(WITHOUT_TENSORFLOW)
    command = [sys.executable, "-W", "error", "-c", code, str(folder)]
    environment = os.environ | {"JAXCLIP_CACHE": str(cache)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def first_read(mnist_folder, session_cache):
    """The result of the first process that read the original files, and so prepared them."""
    return read_without_tensorflow(mnist_folder, session_cache)


@pytest.fixture(scope="session")
def real_mnist(first_read, mnist_folder, session_cache):
    assert first_read.returncode == 0, first_read.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXCLIP_CACHE", str(session_cache))
        return data.load("mnist", str(mnist_folder))


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, no shared folder, an empty cache, and an empty working directory."""
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("JAXCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "connection_trouble", lambda url: "no network in tests")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture(scope="session")
def digits():
    return sources.digits("scikit-learn")


@pytest.fixture(scope="session")
def few_digits(digits):
    """64 training images: an epoch is a step or two."""
    return digits._replace(
        train_images=digits.train_images[:64], train_labels=digits.train_labels[:64]
    )


class _FewExamples(tfds_mnist.Mnist, skip_registration=True):
    """A data set of the stock name with 30 + 10 made-up images."""

    name = "mnist"

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples(0, 30), "test": self._generate_examples(30, 10)}

    def _generate_examples(self, first, count):
        for i in range(first, first + count):
            yield i, {"image": made_up_image(i).reshape(28, 28, 1), "label": i % 10}


def made_up_image(i):
    return np.random.default_rng(i).integers(0, 256, 784, dtype=np.uint8)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder prepared by tensorflow-datasets, with the data set in mnist/3.0.1."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tfds_mnist.BUILDERS, "mnist", _FewExamples)
        assert tfds_mnist.prepare("mnist", folder, None) == folder / "mnist" / "3.0.1"
    return folder
