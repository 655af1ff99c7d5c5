"""What is drawn: the values, their marks, the messages, and looks that differ beyond colour."""

import itertools
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import jaxclip
from jaxclip.plot import style

plot = jaxclip.plot
NAN, INF = float("nan"), float("inf")


def axes():
    return Figure(figsize=(7, 4), layout="constrained").subplots()


def lines(ax):
    """The lines with a name: their values, by name."""
    found = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    return {name: np.transpose(line.get_data()).tolist() for name, line in found.items()}


def rendered(ax):
    """Draws the figure for good: nothing warns or fails."""
    ax.figure.canvas.draw()
    return ax


def of_layers(table, monitor="grads"):
    """Metrics of a layer for each row of a table."""
    return {f"{monitor}/norm/layers/{i}/kernel": row for i, row in enumerate(table)}


def test_norms_of_layers():
    table = np.array([[1.0, 2.0, 4.0], [10.0, 30.0, 20.0]])
    metrics = of_layers(table) | {"grads/norm/layers/1/bias": [0.0, 40.0, 0.0]}
    ax = rendered(plot.norms(metrics, ax=axes()))
    drawn = lines(ax)
    assert drawn["layers/0"] == [[0, 1], [1, 2], [2, 4]]
    np.testing.assert_allclose(drawn["layers/1"], [[0, 10], [1, 50], [2, 20]])
    assert ax.get_yscale() == "log"
    assert ax.get_title("left") == "grads: from 2 (layers/0) to 20 (layers/1)"


def test_which_monitor():
    both = of_layers([[1.0]], "first") | of_layers([[2.0]], "grads")
    assert plot.norms(both, ax=axes()).get_title("left").startswith("grads: 2 (layers/0)")
    assert "first: 1" in plot.norms(both, monitor="first", ax=axes()).get_title("left")
    assert "first: lar" in plot.heat_map(of_layers([[1.0]], "first"), ax=axes()).get_title("left")
    with pytest.raises(ValueError, match="no monitor recorded norms of layers"):
        plot.norms({"loss": [1.0]}, ax=axes())
    with pytest.raises(ValueError, match="monitor='other'"):
        plot.heat_map(both, monitor="other", ax=axes())


def test_values_that_cannot_be_drawn_are_marked():
    table = [[1.0, NAN, INF, 4.0], [0.0, 2.0, 3.0, 0.0]]
    ax = rendered(plot.norms(of_layers(table), ax=axes()))
    drawn = lines(ax)
    assert [x for x, _ in drawn["not finite"]] == [1, 2]
    assert [x for x, _ in drawn["0"]] == [0, 3]
    assert drawn["layers/0"] == [[0, 1], [3, 4]]
    assert drawn["layers/1"] == [[1, 2], [2, 3]]
    assert ax.get_title("left") == "grads: not finite from step 1 on"
    low, high = ax.get_ylim()
    assert 0.5 < low < 1 < 4 < high < 8  # the marks do not count
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["layers/0", "layers/1", "not finite", "0"]
    rendered(plot.norms(of_layers([[NAN, NAN]]), ax=axes()))
    rendered(plot.norms(of_layers([[0.0, 0.0]]), ax=axes()))


def test_many_marks_are_thinned():
    ax = plot.series({"loss": [NAN] * 1000}, ax=axes())
    assert len(lines(ax)["not finite"]) == 25
    assert ax.get_title("left") == "loss: nan at first, not finite from step 0 on"


@pytest.mark.parametrize("count", [1, 7, 8, 30])
def test_layers_differ_in_more_than_colour(count):
    looks = style.looks(count)
    assert len({str(look["color"]) for look in looks}) == count
    alike = itertools.combinations([(x["marker"], x["linestyle"]) for x in looks[:28]], 2)
    assert all(one != other for one, other in alike)


@pytest.mark.parametrize(("layers", "named"), [(3, 3), (8, 8), (30, 8)])
def test_legend_names_some_of_many_layers(layers, named):
    ax = rendered(plot.norms(of_layers(np.ones((layers, 2))), ax=axes()))
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(texts) == named
    assert texts[0] == "layers/0"
    assert texts[-1] == f"layers/{layers - 1}"


def test_names_that_are_long_or_look_like_formulas():
    names = ["block_" * 20 + "end", r"$\a_{$", "$"]
    log = [{f"grads/norm/{name}/w": 1.0 + i for i, name in enumerate(names)}] * 2
    cut = {jaxclip.plot.norms: "block_block_block_...ck_block_block_end"}
    cut[jaxclip.plot.heat_map] = "block_bloc..._block_end"
    for draw, name in cut.items():
        ax = draw(log)
        said = [text.get_text() for text in rendered(ax).findobj(Text)]
        assert name in said
        assert r"\$\a_{\$" in said


def test_long_series_are_medians_over_faint_values():
    values = np.random.default_rng(0).lognormal(size=1000)
    ax = plot.series({"loss": values}, ax=axes())
    faint, bold = ax.get_lines()
    np.testing.assert_array_equal(faint.get_ydata(), values)
    np.testing.assert_allclose(bold.get_ydata(), np.median(values.reshape(20, 50), axis=1))
    np.testing.assert_allclose(bold.get_xdata(), np.arange(24.5, 1000, 50))


def test_ratios():
    metrics = of_layers([[1.0, 2.0], [3.0, 0.3]], "updates") | of_layers(
        [[10.0, 0], [30, 3]], "weights"
    )
    ax = rendered(plot.ratios(metrics, ax=axes()))
    drawn = lines(ax)
    assert drawn["layers/0"] == [[0, 0.1]]
    np.testing.assert_allclose(drawn["layers/1"], [[0, 0.1], [1, 0.1]])
    assert [x for x, _ in drawn["not finite"]] == [1]
    assert ax.get_title("left") == "Update / weight: median 0.1, usual is 0.001"
    renamed = of_layers([[1.0]], "u") | of_layers([[10.0]], "w")
    assert plot.ratios(renamed, updates="u", weights="w", ax=axes())
    with pytest.raises(ValueError, match="monitor='updates'"):
        plot.ratios(renamed, ax=axes())
    lost = of_layers([[NAN]], "updates") | of_layers([[1.0]], "weights")
    assert "median nan" in plot.ratios(lost, ax=axes()).get_title("left")


def test_heat_map():
    table = np.array([[1.0, 10.0, 100.0], [0.0, 5.0, 2.0]])
    ax = rendered(plot.heat_map(of_layers(table), ax=axes()))
    (mesh,) = ax.collections
    np.testing.assert_array_equal(mesh.get_array().filled(-1), [[1, 10, 100], [-1, 5, 2]])
    assert mesh.get_clim() == (1, 100)
    crosses, triangles = ax.get_lines()
    assert crosses.get_xydata().tolist() == []
    assert triangles.get_xydata().tolist() == [[0, 1]]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["layers/0", "layers/1"]
    assert ax.get_title("left") == "grads: largest in layers/0 at step 2, 100"


def test_heat_map_of_a_run_that_overflows():
    table = [[1.0, INF, 0.0], [2.0, NAN, NAN]]
    ax = rendered(plot.heat_map(of_layers(table) | {"step": [0, 10, 20]}, ax=axes()))
    crosses, triangles = ax.get_lines()
    assert crosses.get_xydata().tolist() == [[10, 0], [10, 1], [20, 1]]
    assert triangles.get_xydata().tolist() == [[20, 0]]
    assert ax.get_title("left") == "grads: not finite from step 10 on"


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, NAN, INF, -INF])
@pytest.mark.parametrize("steps", [1, 2])
def test_norms_without_a_number_that_can_be_drawn(value, steps):
    ax = rendered(plot.norms(of_layers([[value] * steps] * 2)))
    assert ax.get_ylim() == (0.1, 10)


@pytest.mark.parametrize("value", [1.0, 0.0, NAN])
def test_heat_map_of_one_value(value):
    ax = rendered(plot.heat_map(of_layers([[value]]), ax=axes()))
    low, high = ax.collections[0].get_clim()
    assert low < high


def test_heat_map_of_many_steps_and_layers():
    """A column is the largest norm of some steps, so that no spike is lost."""
    table = np.ones((40, 1000))
    table[7, 503] = 50.0
    ax = rendered(plot.heat_map(of_layers(table), ax=axes()))
    shown = ax.collections[0].get_array()
    assert shown.shape == (40, 200)
    assert np.argwhere(shown == 50).tolist() == [[7, 100]]
    assert len(ax.get_yticklabels()) == 14


def of_rule(norm, threshold, fraction, name="zclip"):
    fields = {"norm": norm, "threshold": threshold, "fraction": fraction}
    return {f"{name}/{field}": values for field, values in fields.items()}


def test_clipping():
    metrics = of_rule([1.0, 90.0, NAN, 2.0], [INF, 3.0, 3.0, 4.0], [0, 1, 1, 0])
    ax = rendered(plot.clipping(metrics, ax=axes()))
    drawn = lines(ax)
    assert drawn["norm"] == [[0, 1], [1, 90], [3, 2]]
    assert drawn["threshold"] == [[1, 3], [2, 3], [3, 4]]
    assert drawn["clipped"] == [[1, 90]]
    assert [x for x, _ in drawn["not finite"]] == [2]
    assert ax.get_yscale() == "log"
    assert ax.get_title("left") == "zclip clipped 2 of 4 steps; norm not finite from step 2 on"


def test_clipping_without_a_clipped_step():
    ax = rendered(plot.clipping(of_rule([1.0, 2.0], [5.0, 5.0], [0, 0]), ax=axes()))
    assert set(lines(ax)) == {"norm", "threshold"}
    assert ax.get_title("left") == "zclip clipped 0 of 2 steps; largest norm 2"
    assert ax.get_yscale() == "linear"
    ax = rendered(plot.clipping(of_rule([1.0], [INF], [0]), ax=axes()))
    assert set(lines(ax)) == {"norm"}
    ax = rendered(plot.clipping(of_rule([NAN], [INF], [0]), ax=axes()))
    assert ax.get_title("left") == "zclip clipped 0 of 1 step; norm not finite from step 0 on"


def test_which_rule():
    metrics = of_rule([1.0], [2.0], [0], "project_max_norm") | of_rule([3.0], [2.0], [1], "b")
    assert plot.clipping(metrics, ax=axes()).get_title("left").startswith("b clipped 1 of 1")
    chosen = plot.clipping(metrics, rule="project_max_norm", ax=axes())
    assert chosen.get_title("left").startswith("project_max_norm clipped 0")
    for rule, there in (("c", metrics), (None, {"loss": [1.0]})):
        with pytest.raises(ValueError, match=f"rule={rule!r}: no norm and threshold recorded"):
            plot.clipping(there, rule=rule, ax=axes())


def test_clip_rate():
    fraction = np.arange(100) % 4 == 0
    ax = rendered(plot.clip_rate({"a/fraction": fraction, "b/fraction": 0.0 * fraction}, ax=axes()))
    drawn = lines(ax)
    np.testing.assert_allclose(
        np.transpose(drawn["a"])[1], 100 * fraction.reshape(20, 5).mean(axis=1)
    )
    assert np.transpose(drawn["b"])[1].tolist() == [0] * 20
    assert ax.get_title("left") == "a clipped 25 %; b clipped 0 %"
    with pytest.raises(ValueError, match="no rule recorded"):
        plot.clip_rate({"loss": [1.0]}, ax=axes())


def test_series_of_two_runs():
    ax = plot.series({"loss": [1.0, 100.0]}, name="a", ax=axes())
    assert ax.get_yscale() == "log"
    ax = rendered(plot.series({"loss": [3.0, NAN]}, name="b", ax=ax))
    assert lines(ax) == {"a": [[0, 1], [1, 100]], "b": [[0, 3]], "not finite": [[1, 0.97]]}
    one, two, *_ = ax.get_lines()
    assert (one.get_marker(), one.get_color()) != (two.get_marker(), two.get_color())
    assert ax.get_title("left") == "loss: 3 at first, not finite from step 1 on"
    ax = plot.series({"loss": [1.0, 100.0]}, log=False, ax=axes())
    assert ax.get_yscale() == "linear"
    assert ax.get_legend() is None
    with pytest.raises(ValueError, match=r"key='lost' was not recorded; recorded: .*loss"):
        plot.series({"loss": [1.0]}, "lost", ax=axes())


@pytest.mark.parametrize(
    "draw",
    [plot.norms, plot.heat_map, plot.clipping, plot.clip_rate, plot.series, plot.ratios],
)
def test_a_single_point_has_room(draw):
    metrics = of_layers([[2.0]]) | of_layers([[2.0]], "weights") | of_layers([[2.0]], "updates")
    metrics |= of_rule([2.0], [1.0], [1.0]) | {"loss": [0.5], "step": [7]}
    ax = rendered(draw(metrics, ax=axes()))
    assert ax.get_xlim() == (6, 8)


def test_title_is_as_wide_as_the_axes():
    """In lines that end within the axes, in a figure and in a part of one."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    for ax in figure.subplots(1, 3):
        plot.clipping(of_rule([1.0] * 3, [2.0] * 3, [0.0] * 3, "clip_by_a_long_name"), ax=ax)
    figure.canvas.draw()
    for ax in figure.axes:
        assert ax._left_title.get_window_extent().width < 1.1 * ax.get_window_extent().width


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'needs matplotlib: pip install "jaxclip\[plot\]"'):
        plot.series({"loss": [1.0]})
