"""Rules as text: parses `RULE=VALUE[,key=value]` of the command line.

RULE is the name of a function in `jaxclip`, or a short form. One line in a table below makes a rule
available; its keywords come from its signature.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import jaxclip
from jaxclip import thresholds
from jaxclip.train.errors import UserError, first_line
from jaxclip.train.words import choose

Tree = Any

MAX_TEXT = 500  # characters of a rule
MAX_STATE = 500_000_000  # numbers that a rule remembers


class Rule(NamedTuple):
    """A function of `jaxclip` that can be written as text.

    Attributes:
      function: its name.
      short: its short names.
      arguments: turns VALUE into its positional arguments.
      units: the axes of a kernel that a unit's norm reduces, without `axis=`.
      limit: the largest norm that it allows a unit: an argument's name, or a number.
      traced: whether its one argument may be a traced scalar.
    """

    function: str
    short: tuple[str, ...] = ()
    arguments: Callable[[Any], tuple[Any, ...]] = lambda value: (value,)
    units: tuple[int, ...] = ()
    limit: str | float | None = None
    traced: bool = False


def _bounds(value: Any) -> tuple[Any, ...]:
    """Reads `-1:2` as the bounds -1 and 2, and `1` as the bounds -1 and 1."""
    if isinstance(value, tuple):
        return value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{value} is neither a number nor low:high")
    return -value, value


def _range(value: Any) -> tuple[Any, ...]:
    """Reads `0.5:2` as the bounds 0.5 and 2."""
    if not isinstance(value, tuple):
        raise ValueError(f"{value} is not low:high")
    return value


def _threshold(value: Any) -> tuple[Any, ...]:
    """Reads `1` as itself, and `zscore` or `quantile:10` as a learned threshold."""
    word, *arguments = value if isinstance(value, tuple) else (value,)
    if not isinstance(word, str):
        return (value,)
    known = [name for name in thresholds.__all__ if name.islower()]  # the rest are types
    if word not in known:
        raise ValueError(f"{word} is neither a number nor one of {', '.join(known)}")
    return (getattr(thresholds, word)(*arguments),)


def _by_layer(value: Any) -> tuple[Any, ...]:
    """Reads `1` as the largest norm of each layer, whose tensors share the keys but the last."""

    def layers(tree: Tree) -> Tree:
        def name(path: Any, leaf: Any) -> str:
            return jax.tree_util.keystr(path[:-1], simple=True, separator="/")

        return jax.tree_util.tree_map_with_path(name, tree)

    return value, layers


CLIPS = (
    Rule("clip", ("delta",), traced=True),
    Rule("clip_by_value", ("value",), _bounds),
    Rule("clip_by_norm", ("norm",), traced=True),
    Rule("clip_by_average_norm", ("average_norm",), traced=True),
    Rule("clip_by_block_rms", ("block_rms",), traced=True),
    Rule("clip_by_global_norm", ("global_norm",), traced=True),
    Rule("clip_by_group_norm", ("layer_norm",), _by_layer),
    Rule("normalize_by_norm", ("normalize",), traced=True),
    Rule("stabilize_gradient", ("stabilize",)),
    Rule("adaptive_grad_clip", ("adaptive", "agc"), units=(0,), traced=True),
    Rule("autoclip"),
    Rule("zclip"),
    Rule("adagc"),
    Rule("clip_by_growth", ("growth",), traced=True),
    Rule("clip_by_history", ("history",)),
    Rule("clip_by", ("by",), _threshold),
)
PROJECTIONS = (
    Rule("project_max_norm", ("max_norm",), units=(0,), limit="max_norm"),
    Rule("project_unit_norm", ("unit_norm",), units=(0,), limit=1.0),
    Rule("project_min_max_norm", ("min_max_norm",), _range, units=(0,), limit="max_norm"),
    Rule("project_non_negative", ("non_negative",)),
    Rule("project_box", ("box",), _bounds),
    Rule("project_spectral_norm", ("spectral_norm",), units=(0, 1)),
)
GUARDS = (
    Rule("skip_nonfinite"),
    Rule("skip_spikes"),
    Rule("skip_above", (), _threshold),
    Rule("rollback"),
)
RULES = {"clip": CLIPS, "project": PROJECTIONS, "guard": GUARDS}

# Arguments that text cannot give, or that this network has no use for: it has no stack of layers.
# `layers=` replaces a mask.
_NOT_TEXT = ("inner", "mask", "norm_mask", "scale_mask", "axis_name", "name", "stacked", "groups")


class Spec(NamedTuple):
    """A rule as the user wrote it: `text` and its parts."""

    kind: str
    text: str
    rule: Rule
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def error(self, problem: str) -> UserError:
        """Returns an error that names the flag and its value."""
        return UserError(f"--{self.kind} {self.text}: {problem}")

    @property
    def traceable(self) -> bool:
        """Whether a traced scalar can replace its argument, so that runs share a program."""
        return self.rule.traced and type(self.arguments[0]) in (int, float)

    @property
    def units(self) -> tuple[int, ...]:
        """The axes of a kernel that a unit's norm reduces, () if the rule has no units."""
        axis = self.value("axis")
        if axis is None:
            return self.rule.units or ((0,) if self.value("scope") == "unit" else ())
        axes = axis if isinstance(axis, tuple) else (axis,)
        return tuple(sorted(a % 2 for a in axes if -2 <= a < 2)) or (0, 1)

    def takes(self, name: str) -> bool:
        """Returns whether the rule has an argument `name`."""
        return name in _signature(self.rule).parameters

    def value(self, name: str) -> Any:
        """Returns the value of argument `name`, None if the rule has no such argument."""
        bound = _signature(self.rule).bind(*self.arguments, **self.options)
        bound.apply_defaults()
        return bound.arguments.get(name)

    def build(
        self, params: Tree, *inner: optax.GradientTransformation, **extra: Any
    ) -> optax.GradientTransformationExtraArgs:
        """Builds the transformation, around `inner` if it is a guard; traces it on `params`."""
        function = getattr(jaxclip, self.rule.function)
        try:
            made = function(*inner, *self.arguments, **self.options, **extra)
            state = jax.eval_shape(made.init, params)
            jax.eval_shape(made.update, params, state, params)
        except (TypeError, ValueError, OverflowError) as error:
            raise self.error(first_line(error)) from error
        numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
        if numbers > MAX_STATE:
            raise self.error(f"remembers {numbers:.0e} numbers, more than {MAX_STATE:,}")
        return made


def parse(kind: str, text: str) -> Spec:
    """Parses `RULE=VALUE[,key=value]`.

    Args:
      kind: `clip`, `project` or `guard`. A projection has the option `layers` too.
      text: the rule as the user wrote it.

    Returns:
      The rule, its arguments and its options; `Spec.build` checks their values.
    """
    if len(text) > MAX_TEXT:
        raise UserError(f"--{kind} {text[:40]}...: longer than {MAX_TEXT} characters")
    head, *pairs = text.split(",")
    name, equals, value = head.partition("=")
    names = _names(kind)
    if name.strip() not in names:
        flags = [f"--{other} {text}" for other in RULES if name.strip() in _names(other)]
        near = f"did you mean {flags[0]}?" if flags else choose(name, names)
        raise UserError(f"--{kind} {text}: unknown rule {name!r}, {near}")
    rule = names[name.strip()]
    spec = Spec(kind, text, rule, (), {})
    keys = (*_keywords(rule), "layers") if kind == "project" else _keywords(rule)
    options = _options(spec, pairs, keys)
    return spec._replace(arguments=_arguments(spec, equals, value), options=options)


def _names(kind: str) -> dict[str, Rule]:
    """Returns the rules of a kind by all of their names."""
    return {name: rule for rule in RULES[kind] for name in (*rule.short, rule.function)}


def _signature(rule: Rule) -> inspect.Signature:
    return inspect.signature(getattr(jaxclip, rule.function))


def _parameters(rule: Rule) -> dict[str, inspect.Parameter]:
    parameters = _signature(rule).parameters
    return {name: p for name, p in parameters.items() if name not in _NOT_TEXT}


def _keywords(rule: Rule) -> tuple[str, ...]:
    """Returns the keywords of a rule that text can give."""
    parameters = _parameters(rule).items()
    return tuple(k for k, p in parameters if p.default is not p.empty or p.kind is p.KEYWORD_ONLY)


def _arguments(spec: Spec, equals: str, value: str) -> tuple[Any, ...]:
    """Reads VALUE, which only a rule without a mandatory argument can omit."""
    first = next(iter(_parameters(spec.rule).values()))
    if not equals and first.default is first.empty:
        raise spec.error(f"needs a value: {spec.text.split(',')[0]}=NUMBER ({first.name})")
    if equals and first.kind is first.KEYWORD_ONLY:
        raise spec.error("takes no value, only keywords")
    try:
        return spec.rule.arguments(literal(value)) if equals else ()
    except (TypeError, ValueError) as error:
        raise spec.error(first_line(error)) from None


def _options(spec: Spec, pairs: list[str], keys: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or key not in keys:
            raise spec.error(f"unknown option {pair!r}, {choose(key, keys)}")
        if key in options:
            raise spec.error(f"option {key!r} given twice")
        options[key] = literal(value)
    return options


def literal(text: str) -> Any:
    """Reads a number, true, false, none, `0:1` for a tuple, or a word.

    >>> literal("15"), literal("1e-3"), literal("0:1"), literal("zero")
    (15, 0.001, (0, 1), 'zero')
    """
    text = text.strip()
    if ":" in text:
        return tuple(literal(part) for part in text.split(":"))
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        return float(text) if abs(value) >= 2**63 else value
    return text
