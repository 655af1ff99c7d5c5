"""Public signatures say what may be passed: every parameter has a type, and none is `Any`."""

import ast
import inspect
import re
import textwrap

import pytest

import jaxclip

MODULES = ("functional", "guards", "norms", "plot", "projections", "telemetry", "thresholds")
MODULES += ("diagnosis", "backward")


def public():
    """The public functions and NamedTuples, by name."""
    found = {n: getattr(jaxclip, n) for n in jaxclip.__all__}
    for module in MODULES:
        inside = getattr(jaxclip, module)
        found |= {f"{module}.{n}": getattr(inside, n) for n in inside.__all__}
    return {name: x for name, x in found.items() if not inspect.ismodule(x)}


@pytest.mark.parametrize("name", sorted(public()))
def test_signature_has_types_and_no_any(name):
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(public()[name]))).body
    if isinstance(definition, ast.ClassDef):
        types = [x.annotation for x in definition.body if isinstance(x, ast.AnnAssign)]
    else:
        arguments = definition.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        types = [*(argument.annotation for argument in every), definition.returns]
    for annotation in types:
        assert annotation is not None
        assert not re.search(r"\bAny\b", ast.unparse(annotation)), ast.unparse(annotation)


def test_defaults_are_plain_python():
    for name, function in public().items():
        if inspect.isfunction(function):
            for parameter in inspect.signature(function).parameters.values():
                default = parameter.default
                plain = (bool, int, float, str, type(None), type(inspect.Parameter.empty))
                assert isinstance(default, plain), (name, parameter)
