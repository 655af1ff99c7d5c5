"""Figures of several panels: which panels, in which place, on which scale."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxclip

plot = jaxclip.plot
LAYERS = {
    f"{m}/norm/{i}/kernel": [1.0 + i, 2.0]
    for m in ("grads", "updates", "weights")
    for i in range(2)
}
RULE = {"zclip/norm": [1.0, 9.0], "zclip/threshold": [2.0, 2.0], "zclip/fraction": [0.0, 1.0]}


def figure():
    return Figure(figsize=(10, 8), layout="constrained")


def panels(fig):
    """The labels of the axes with a frame."""
    return [ax.get_ylabel() for ax in fig.axes if ax.axison and ax.get_xlabel()]


def test_overview_draws_what_was_recorded():
    fig = plot.overview({"train/loss": [2.0, 1.0]} | LAYERS | RULE, fig=figure())
    fig.canvas.draw()
    ratio, layer = "norm of update / of weights", "norm of the layer"
    assert panels(fig) == ["train/loss", "norm", layer, "", ratio, "clipped (%)"]
    assert panels(plot.overview(RULE, fig=figure())) == ["norm", "clipped (%)"]
    assert panels(plot.overview({"loss": [1.0]}, fig=figure())) == ["loss"]
    assert len(plot.overview(LAYERS | RULE, fig=figure()).axes) == 7  # one is empty, one a scale


def test_nothing_to_draw():
    for draw in (plot.overview, lambda metrics, fig: plot.side_by_side({"a": metrics}, fig=fig)):
        with pytest.raises(ValueError, match=r"nothing to draw: no loss.*\['speed'\]"):
            draw({"speed": [1.0]}, fig=figure())
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.side_by_side({}, fig=figure())


def test_side_by_side():
    runs = {"one": {"loss": [1.0, 500.0]} | RULE, "two": {"loss": [2.0, 3.0]}}
    fig = plot.side_by_side(runs, fig=figure())
    fig.canvas.draw()
    losses = [ax for ax in fig.axes if ax.get_ylabel() == "loss"]
    assert len(losses) == 2
    assert losses[0].get_ylim() == losses[1].get_ylim()
    assert [ax.get_yscale() for ax in losses] == ["log", "log"]
    assert losses[0].get_position().y0 == losses[1].get_position().y0
    heads = [text.get_text() for ax in losses for text in ax.texts]
    assert heads == ["one", "two"]
    missing = [text.get_text() for ax in fig.axes if not ax.axison for text in ax.texts]
    assert missing == ["clipping:\nnot recorded", "clip rate:\nnot recorded"]


def test_side_by_side_in_one_scale_of_colours():
    runs = {
        name: {"grads/norm/0/kernel": values}
        for name, values in (("a", [1.0, 9.0]), ("b", [5.0, 70.0]))
    }
    fig = plot.side_by_side(runs, fig=figure())
    meshes = [ax.collections[0] for ax in fig.axes if ax.get_xlabel().startswith("step (cross")]
    assert [mesh.get_clim() for mesh in meshes] == [(1, 70), (1, 70)]


def test_new_figures():
    """Without a figure or axes, a new one of pyplot, of the size of its panels."""
    from matplotlib import pyplot

    with pyplot.rc_context({"backend": "agg"}):
        before = set(pyplot.get_fignums())
        assert plot.overview(RULE).get_size_inches().tolist() == [9.6, 3.7]
        assert plot.side_by_side({"a": RULE}).get_size_inches().tolist() == [6.0, 7.0]
        assert plot.clip_rate(RULE).figure.get_size_inches().tolist() == [7.0, 4.2]
        for number in set(pyplot.get_fignums()) - before:
            pyplot.close(number)


def test_metrics_of_every_recorded_run_are_drawn_from_files(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.5}\n{"step": 1, "loss": "NaN"}\n')
    (ax,) = plot.overview(tmp_path, fig=figure()).axes
    assert ax.get_title("left") == "loss: 1.5 at first, not finite from step 1 on"
    np.testing.assert_array_equal(ax.get_lines()[0].get_xydata(), [[0, 1.5]])
