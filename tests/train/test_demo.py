"""The short demo: it writes all files, and its sentences hold the measured numbers."""

import matplotlib.image
import pytest

from jaxclip.train import cli
from jaxclip.train.commands import demo_stories
from tests.train.runs import records, summary

pytestmark = pytest.mark.slow  # three stories to compile

FIGURES = ("vanishing.png", "exploding.png", "max-norm.png")


def _shallow(variant):
    return variant._replace(config=variant.config.override({"sizes": variant.config.sizes[:1]}))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder and the output of one short demo on the digits, of networks of two layers."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("demo")
    said = io.StringIO()
    shallow = [
        story._replace(variants=tuple(_shallow(variant) for variant in story.variants))
        for story in demo_stories.STORIES
    ]
    with contextlib.redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_stories, "STORIES", shallow)
        assert cli.main(["demo", "--smoke", "--dataset", "digits", "--out", str(out)]) == 0
    return out, said.getvalue()


def test_files(demo):
    out, _ = demo
    names = {path.name for path in out.iterdir()}
    assert names - {".jaxclip.lock"} == {*FIGURES, "metrics.jsonl", "summary.json"}
    for name in FIGURES:
        height, width, _ = matplotlib.image.imread(out / name).shape
        assert (height, width) == (550, 1320)


def test_every_run_is_recorded(demo):
    out, _ = demo
    runs = {(r["story"], r["run"]) for r in records(out) if r["kind"] == "epoch"}
    assert runs == {(s.name, v.name) for s in demo_stories.STORIES for v in s.variants}
    assert records(out)[0]["kind"] == "run"


def test_summary_and_sentences(demo):
    out, said = demo
    content = summary(out)
    assert content["status"] == "finished"
    for name, story in content["stories"].items():
        assert story["finding"].startswith(f"{name}: ")
        assert story["finding"] in said
        assert (out / story["figure"]).exists()
    assert "data: digits (8x8)" in said
    assert "Clipping does not cure it" in said
    assert "0.99^365 = 0.0255, 1.01^365 = 37.78" in said
    assert content["stories"]["max-norm"]["runs"]["project_max_norm(1.5)"][
        "largest_unit_norm"
    ] <= 1.5 * (1 + 1e-6)


def test_variants_use_the_rules_in_their_names():
    configs = {v.name: v.config for story in demo_stories.STORIES for v in story.variants}
    assert configs["clip_by_global_norm(300)"].clip == ("global_norm=300",)
    assert configs["no clipping"].clip == ()
    assert configs["no clipping"].init_std == 1
    assert configs["project_max_norm(1.5)"].project[0].startswith("max_norm=1.5,")
