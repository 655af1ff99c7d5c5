"""Each layer's telemetry against float64 NumPy, its figure, and the findings of a run."""

import matplotlib.image
import numpy as np
import pytest

import jaxclip
from jaxclip.train.commands import train
from jaxclip.train.config import config_file, presets
from jaxclip.train.recording import resuming
from jaxclip.train.recording.history import History
from jaxclip.train.reporting import layer_figure
from jaxclip.train.training import loop
from tests.train import runs

# For each activation: itself, its slope, and the largest slope.
FUNCTIONS = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: np.float64(z > 0), 1.0),
    "sigmoid": (
        lambda z: 1 / (1 + np.exp(-z)),
        lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2,
        0.25,
    ),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2, 1.0),
}
LAYERS = ("layers/0", "layers/1", "layers/2")


def config(activation):
    """Large weights, so that some units are dead or saturated."""
    changes = {"activation": activation, "init": "normal", "init_std": 1.2, "sizes": (12, 9)}
    changes |= {"batch_size": 16, "epochs": 1, "loss": "cross_entropy", "learning_rate": 0.5}
    return presets.get("explode").override({"clip": ()} | changes)


@pytest.fixture(scope="module", params=FUNCTIONS)
def trained(request, few_digits):
    """Parameters in float64 before and after four steps, and their epoch."""
    settings = config(request.param)
    layers = loop.build_network(settings, few_digits).params["layers"]
    start = [[np.float64(layers[i][part]) for part in ("kernel", "bias")] for i in range(3)]
    (epoch,) = loop.train(loop.prepare(settings, few_digits), few_digits)
    end = epoch.state.params["layers"]
    end = [[np.float64(end[i][part]) for part in ("kernel", "bias")] for i in range(3)]
    return settings, start, epoch, end


def preactivations(params, x, function):
    found = []
    for kernel, bias in params[:-1]:
        found.append(x @ kernel + bias)
        x = function(found[-1])
    return found, x


def gradients(params, x, y, function, slope):
    """Backpropagation of the mean cross-entropy of a softmax."""
    found, top = preactivations(params, x, function)
    inputs = [x, *map(function, found)]
    scores = top @ params[-1][0] + params[-1][1]
    shares = np.exp(scores - scores.max(1, keepdims=True))
    error = (shares / shares.sum(1, keepdims=True) - np.eye(10)[y]) / len(x)
    grads = []
    for i in reversed(range(3)):
        grads.insert(0, [inputs[i].T @ error, error.sum(0)])
        if i:
            error = error @ params[i][0].T * slope(found[i - 1])
    return grads


@pytest.mark.slow
def test_norms_of_weights_gradients_and_updates_of_each_step(trained, few_digits):
    settings, params, epoch, _ = trained
    function, slope, _ = FUNCTIONS[settings.activation]
    for step in range(4):
        batch = slice(16 * step, 16 * step + 16)
        x, y = few_digits.train_images[batch].astype(np.float64), few_digits.train_labels[batch]
        grads = gradients(params, x, y, function, slope)
        updates = [[-0.5 * g for g in layer] for layer in grads]
        for monitor, tree in (("weights", params), ("grads", grads), ("updates", updates)):
            norms = [[np.linalg.norm(leaf) for leaf in layer] for layer in tree]
            for name, layer in zip(LAYERS, norms, strict=True):
                for part, norm in zip(("kernel", "bias"), layer, strict=True):
                    recorded = epoch.telemetry[f"{monitor}/norm/{name}/{part}"][step]
                    assert recorded == pytest.approx(norm, rel=2e-4, abs=1e-7)
            assert epoch.telemetry[f"{monitor}/norm"][step] == pytest.approx(
                np.linalg.norm(norms), rel=2e-4
            )
        params = [
            [p + u for p, u in zip(*pair, strict=True)]
            for pair in zip(params, updates, strict=True)
        ]


@pytest.mark.slow
def test_dead_and_saturated_units_on_the_test_images(trained, few_digits):
    settings, _, epoch, params = trained
    function, slope, largest = FUNCTIONS[settings.activation]
    x = few_digits.test_images.astype(np.float64)
    found, _ = preactivations(params, x, function)
    saturated = []
    for i, z in enumerate(found):
        flat = slope(z) < 0.01 * largest
        dead = flat.all(axis=0).mean()
        assert epoch.test[f"units/dead/layers/{i}"] == pytest.approx(dead, abs=1e-6)
        share = epoch.test[f"units/saturated/layers/{i}"]
        assert share == pytest.approx(flat.mean(), abs=2.5 / flat.size)  # at the very edge
        saturated.append(share)
    assert "units/dead/layers/2" not in epoch.test
    assert 0.01 < max(saturated) < 0.99


def made_up(layers, epochs, value=1.0):
    """A made-up history with three steps an epoch."""
    past = History("any")
    rng = np.random.default_rng(0)
    for monitor in ("grads", "weights", "updates"):
        for i in range(layers):
            for part in ("kernel", "bias"):
                drawn = rng.lognormal(-i, size=3 * epochs)
                drawn[epochs:] *= value
                past.telemetry[f"{monitor}/norm/layers/{i}/{part}"] = drawn
    past.steps = np.arange(3 * epochs)
    shares = {
        f"units/{w}/layers/{i}": 0.5 for w in ("dead", "saturated") for i in range(layers - 1)
    }
    past.epochs = [shares] * epochs
    return past


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "epochs", "value", "activation"),
    [
        *((12, 1, 1.0, "relu"), (1, 2, np.nan, "sigmoid")),
        *((2, 3, np.inf, "tanh"), (3, 2, 0.0, "sigmoid")),
    ],
)
def test_figure(layers, epochs, value, activation, tmp_path):
    past = made_up(layers, epochs, value)
    found = jaxclip.diagnosis.of_metrics(past.telemetry, "grads", "weights", "updates")
    past.settings = {"activation": activation}
    layer_figure.draw(past, found, tmp_path / "layers.png")
    drawn = matplotlib.image.imread(tmp_path / "layers.png")
    assert drawn.shape == (550, 1320, 4)
    colours = {tuple(c) for c in (drawn[..., :3].reshape(-1, 3) * 255).round().astype(int)}
    assert (0, 114, 178) in colours or layers > 7


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "swish", "sigmoid", "tanh"])
def test_saturated_units_only_where_an_activation_is_flat_at_both_ends(activation, monkeypatch):
    seen = []
    monkeypatch.setattr(layer_figure.figures, "save", lambda figure, path: seen.append(figure))
    past = made_up(3, 2)
    past.settings = {"activation": activation}
    found = jaxclip.diagnosis.of_metrics(past.telemetry, "grads", "weights", "updates")
    layer_figure.draw(past, found, None)
    panel = seen[0].axes[2]
    said = panel.get_title("left") + " ".join(panel.get_legend_handles_labels()[1])
    assert ("aturated" in said) == (activation in ("sigmoid", "tanh"))
    assert "Dead" in said
    past.epochs = []  # a log of another program
    layer_figure.draw(past, found, None)
    assert not seen[1].axes[2].axison


@pytest.mark.slow
def test_one_layer(few_digits, tmp_path, capsys):
    """And the configuration that the run writes is its own: the same flags can resume it."""
    from rich.console import Console

    settings = config("relu").override({"sizes": (), "batch_size": 64, "learning_rate": 1 / 3})
    train.run(settings, few_digits, str(tmp_path), Console())
    assert runs.summary(tmp_path)["status"] == "finished"
    assert "1 layer is too few for a trend over depth" in capsys.readouterr().out
    assert matplotlib.image.imread(tmp_path / "layers.png").shape == (550, 1320, 4)
    kept = config_file.config(tmp_path / "config.json")
    assert kept == settings.override({"dataset": "digits"})
    assert resuming.check(str(tmp_path), settings) == kept
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.slow
def test_deep_sigmoid_network_is_diagnosed_as_vanishing(tmp_path, capsys):
    arguments = ["--dataset", "digits", "--sizes", "8,8,8,8,8", "--batch-size", "512"]
    arguments += ["--activation", "sigmoid", "--init", "lecun", "--epochs", "1"]
    runs.train("train", "explode", *arguments, "--out", str(tmp_path))
    first, *rest = runs.summary(tmp_path)["findings"]
    assert first.startswith("vanishing: ")
    assert "over 6 layers" in first
    said = capsys.readouterr().out.splitlines()
    for sentence in (first, *rest):  # flags that help may follow
        assert any(line.startswith(f"- {sentence[:60]}") for line in said)
    assert not (tmp_path / "tensorboard").exists()
    steps = [r for r in runs.records(tmp_path) if r["kind"] == "step"]
    for record in steps:
        assert record["grads/norm/layers/0/kernel"] < 1e-2 * record["grads/norm/layers/5/kernel"]
    assert runs.summary(tmp_path)["units/dead/layers/4"] == 0
    assert matplotlib.image.imread(tmp_path / "layers.png").shape == (550, 1320, 4)
