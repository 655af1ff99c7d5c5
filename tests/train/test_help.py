"""Help, version, quiet runs, and completion in a shell."""

import json
import re
import subprocess
import sys

import pytest

import jaxclip
from jaxclip.train import cli
from jaxclip.train.config import presets, rule_specs

COMMANDS = ["demo", "presets", "train", "evaluate", "compare", "diagnose", "plot"]


def printed(capsys, *arguments):
    """The text of `--help` and `--version`, which end the program."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 0
    said = capsys.readouterr().out
    assert said == printed(capsys, "--help")
    listed = [line.split()[0] for line in said.splitlines() if line.startswith("    ")]
    assert [name for name in listed if name in COMMANDS] == COMMANDS
    assert "Start with: jaxclip demo --dataset digits." in said


def test_version(capsys):
    assert printed(capsys, "--version") == f"jaxclip {jaxclip.__version__}\n"


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_and_breaks_no_word(command, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    said = printed(capsys, command, "--help")
    for line in said.splitlines():
        assert len(line) <= width or len(line.split()) == 1 or line.startswith("  --")
        assert not re.search(r"\w-$", line)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_has_groups_defaults_and_rules(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    said = printed(capsys, command, "--help")
    for title in ("run:", "network:", "training:", "rules:", "records:"):
        assert f"\n{title}\n" in said
    flags = {line.split()[0].strip(","): line for line in said.splitlines() if "  --" in line}
    for field in presets.fields()[1:]:
        assert presets.flag(field.name) in flags
    for kind, rules in rule_specs.RULES.items():
        text = said.split(f"\n  --{kind} ")[1].split("\n  --")[0]
        for rule in rules:
            names = (*rule.short, rule.function)
            assert any(re.search(rf" {name}[,;]", text) for name in names)
    for text in (
        "swish, sigmoid, tanh (default: relu; vanish: sigmoid)",
        "if --init has one (default: 0.1)",
        "training step sets to 0 (default: 0.0)",
        "max_norm=1,axis=0,layers=hidden;",
        "(default: none; max-norm: max_norm=1.0,axis=1,layers=hidden)",
        "(default: yes; explode: no; forward: no)",
        "--end-learning-rate (default: all; max-norm: 22000)",
    ):
        assert text in said


COMPLETED = {
    "jaxclip pre": ["presets"],
    "jaxclip train expl": ["explode"],
    "jaxclip train explode --lear": ["--learning-rate"],
    "jaxclip train explode --init g": ["glorot"],
    "jaxclip train explode --clip glo": ["global_norm="],
    "jaxclip compare --guard skip_s": ["skip_spikes="],
    "jaxclip diagnose --upd": ["--updates"],
}
COMPLETE = """
import io, json, os, sys
import argcomplete
from jaxclip.train.cli import parser

lines, answers = json.load(sys.stdin), {}
parsers = [parser.build() for line in lines]  # without the variables, or it would answer itself
known = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "|", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
for line, built in zip(lines, parsers):
    os.environ |= known | {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    out = io.StringIO()
    argcomplete.CompletionFinder()(built, exit_method=lambda code: None, output_stream=out)
    answers[line] = out.getvalue().split("|")
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_completion():
    """Answers the shell's function of `register-python-argcomplete`, which closes descriptors."""
    command = [sys.executable, "-c", COMPLETE]
    lines = json.dumps(list(COMPLETED))
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == COMPLETED


@pytest.mark.slow
def test_help_starts_without_the_libraries_of_training():
    code = (
        "import sys; from jaxclip.train import cli; cli.main([]); "
        "print([m for m in ('flax', 'orbax', 'matplotlib', 'rich', 'sklearn', 'argcomplete') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
