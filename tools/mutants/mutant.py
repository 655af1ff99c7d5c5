"""One mutant, and the text of its module with the fault."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """A change of one function, and the tests that must fail because of it.

    Attributes:
        module: a path below `jaxclip/`.
        function: a qualified name without `<locals>`, such as `clip_by.update` or `Norm.scaled`,
            or that of a class; `""` is the whole module.
        fault: the fault, in words.
        old: code that occurs exactly once in the function.
        new: the code in its place.
        tests: arguments of pytest that select tests.
    """

    module: str
    function: str
    fault: str
    old: str
    new: str
    tests: str

    def __str__(self) -> str:
        """The module and the fault, which identify a mutant."""
        return f"{self.module}: {self.fault}"

    def applied(self, package: Path) -> str:
        """The text of the module with the change; raises if it does not apply exactly once."""
        text = (package / self.module).read_text()
        lines, tree = text.splitlines(keepends=True), ast.parse(text)
        places = dict(_functions(tree)) | {"": (0, len(lines))}
        if self.function not in places:
            raise ValueError(f"there is no function {self.function!r}")
        start, end = places[self.function]
        code, count = _pattern(self.old).subn(lambda _: self.new, "".join(lines[start:end]))
        if count != 1:
            raise ValueError(f"{self.old!r} occurs {count} times in {self.function!r}")
        changed = "".join([*lines[:start], code, *lines[end:]])
        if ast.dump(ast.parse(changed)) == ast.dump(tree):
            raise ValueError(f"{self.new!r} does not change the program")
        return changed


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
    """The functions and classes in a node: qualified names, and the lines from start to end."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            first = min(x.lineno for x in (child, *child.decorator_list))
            yield prefix + child.name, (first - 1, child.end_lineno or first)
            name = f"{prefix}{child.name}."
        yield from _functions(child, name)


def _pattern(code: str) -> re.Pattern[str]:
    """Matches the code with any white space, and with or without a comma before a bracket."""
    tokens = re.findall(r"\w+|[^\w\s]", re.sub(r",(?=\s*[)\]}])", "", code))
    words = (rf"\b{token}\b" if re.match(r"\w", token) else re.escape(token) for token in tokens)
    return re.compile(r"\s*".join(rf",?\s*{x}" if x[-1] in ")]}" else x for x in words))
