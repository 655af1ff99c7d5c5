"""`jaxclip plot`: runs of several files and of one file, and errors in one line."""

import json

import matplotlib.image
import pytest

from jaxclip.train import cli


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def plot(capsys, *arguments, code=0):
    assert cli.main(["plot", *arguments]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def steps(**more):
    return [{"step": i, "loss": 1.0 / (i + 1)} | more for i in range(3)]


def test_one_run(tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder / "metrics.jsonl", *steps())
    assert plot(capsys, str(folder)) == "figure: plot.png, of mine\n"
    assert matplotlib.image.imread(tmp_path / "work" / "plot.png").shape[2] == 4


@pytest.mark.slow
def test_runs_of_two_files(tmp_path, capsys):
    """Runs of the same name are told apart."""
    one, two, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "x.png"
    for path in (one, two):
        write(path, {"kind": "run", "preset": "explode"}, *steps())
    with two.open("a") as file:
        file.write('{"step": 9, ')
    said = plot(capsys, str(one), str(two), "--out", str(out))
    assert f"note: {two}: 1 damaged line left out\n" in said
    assert f"figure: {out}, of a.jsonl; b.jsonl\n" in said
    again = plot(capsys, str(one), str(one), "--out", str(out))
    assert again.endswith("of a.jsonl; a.jsonl (2)\n")
    height, width, _ = matplotlib.image.imread(out).shape
    assert width > height
    many = write(tmp_path / "c.jsonl", *(row for i in range(9) for row in steps(seed=i)))
    assert "9 runs, but at most 8 fit" in plot(capsys, many, code=2)


@pytest.mark.parametrize("out", ["", "metrics.jsonl", "../mine", "/"])
def test_no_other_file_is_written_over(out, tmp_path, capsys):
    path = write(tmp_path / "work" / "metrics.jsonl", *steps())
    before = (tmp_path / "work" / "metrics.jsonl").read_bytes()
    words = "a figure's name must end in .png" if out else "empty, a path is needed"
    assert plot(capsys, path, "--out", out, code=2) == f"jaxclip: error: --out={out}: {words}\n"
    assert (tmp_path / "work" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "FILE=FOLDER/log.jsonl: No such file or directory"),
        ("", "FILE=FOLDER/log.jsonl: empty"),
        (
            "x",
            "FILE=FOLDER/log.jsonl: no line is a JSON object; log one object a line: json.dumps(",
        ),
        ('{"speed": 1}\n', "nothing to draw: no loss, rule or monitor in the keys ['speed']"),
    ],
)
def test_errors(content, words, tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_text(content)
    said = plot(capsys, str(path), code=2)
    assert said.startswith("jaxclip: error: FILE=")
    assert words.replace("FOLDER", str(tmp_path)) in said
    assert said.count("\n") == 1
