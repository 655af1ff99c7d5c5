"""Draws `units.png`: the entries of a kernel that are one unit's weights, and code to bound them.

Run it from anywhere: `python docs/figures/units.py`. It needs matplotlib.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from jaxclip.plot.style import BLUE, GREY, ORANGE

FONT = 13
COUNT = {"x": 4, "y": 3}
WHAT = {"x": "inputs", "y": "outputs"}
SUBSCRIPTS = str.maketrans("1234", "₁₂₃₄")
HIGH, WIDE = (5.2, -1.0), (-1.3, 8.3)  # the extent of a panel, in cells; the first row is on top


def named(letter: str, *numbers: int) -> str:
    """Returns a name with subscripts: x₁, w₁₂."""
    return letter + "".join(str(n) for n in numbers).translate(SUBSCRIPTS)


def write(ax: Axes, x: float, y: float, text: str, colour: str = GREY, **style) -> None:
    """Writes at a place counted in cells."""
    ax.text(x, y, text, **{"color": colour, "size": FONT + 1, "ha": "center"} | style)


def cell(ax: Axes, x: float, y: float, colour: str | None, size: float = 1.0, **style) -> None:
    """Draws one weight, filled if it belongs to the unit that is shown."""
    look = {"facecolor": colour or "#E6E6E6", "edgecolor": "white", "linewidth": 2} | style
    ax.add_patch(Rectangle((x, y), size, size, **look))


def matrix(ax: Axes, rows: str, columns: str, chosen: tuple[str, int], colour: str) -> None:
    """Draws a kernel with inputs or outputs along its rows; w₁₂ leads from x₁ to y₂."""
    for i in range(1, COUNT[rows] + 1):
        for j in range(1, COUNT[columns] + 1):
            at = {rows: i, columns: j}
            on = at[chosen[0]] == chosen[1]
            cell(ax, j - 1, i - 1, colour if on else None)
            look = {"weight": "bold"} if on else {}
            ink = "white" if on else GREY
            write(ax, j - 0.5, i - 0.5, named("w", at["x"], at["y"]), ink, va="center", **look)
    for letter in (rows, columns):
        for k in range(1, COUNT[letter] + 1):
            x, y = (-0.3, k - 0.35) if letter == rows else (k - 0.5, -0.15)
            on = (letter, k) == chosen
            look = {"weight": "bold"} if on else {}
            write(ax, x, y, named(letter, k), colour if on else GREY, **look)
    write(ax, -0.8, COUNT[rows] / 2, WHAT[rows], rotation=90, va="center")
    write(ax, COUNT[columns] / 2, -0.65, WHAT[columns])


def convolution(ax: Axes, chosen: int) -> None:
    """Draws a kernel (3, 3, 2, 3): for each output channel a block of 3 x 3 x 2 weights."""
    size = 0.55
    for out in range(1, 4):
        colour = BLUE if out == chosen else None
        left = (out - 1) * 2.5 - 0.3
        for back in (0.42, 0.0):  # the second input channel lies behind the first
            for k in range(9):
                x, y = left + back + k % 3 * size, 1.2 - back + k // 3 * size
                cell(ax, x, y, colour, size, alpha=0.5 if back and colour else None)
        style = {"weight": "bold"} if colour else {}
        write(ax, left + 0.95, 0.55, named("y", out), colour or GREY, **style)
    write(ax, 3.25, 0.0, "output channels")
    write(ax, 3.25, 3.4, "H x W = 3 x 3 weights for each of 2 input channels")


def tell(ax: Axes, title: str, colour: str, below: float, *code: str) -> None:
    """Writes the title above a panel and, below its grid, the code that bounds the unit."""
    ax.set_title(title, fontsize=FONT + 2, fontweight="bold", color=colour, loc="left", pad=8)
    for i, text in enumerate(code):
        write(ax, -1.1, below + 0.5 * i, text, "black", family="monospace", size=FONT, ha="left")
    ax.set(aspect="equal", xlim=WIDE, ylim=HIGH)
    ax.axis("off")


def draw() -> Figure:
    """Returns the picture."""
    figure = Figure(figsize=(12, 9.2), layout=ConstrainedLayoutEngine(h_pad=0.2, w_pad=0.15))
    figure.suptitle("Whose norm is bounded? w₁₂ leads from input x₁ to output y₂",
                    fontsize=FONT + 5, fontweight="bold")  # fmt: skip
    (a, b), (c, d) = figure.subplots(2, 2)
    column = r"$\sqrt{w_{12}^2 + w_{22}^2 + w_{32}^2 + w_{42}^2} \;\leq\; c$"
    row = r"$\sqrt{w_{31}^2 + w_{32}^2 + w_{33}^2} \;\leq\; c$"
    place = {"size": FONT + 2, "ha": "left", "va": "center"}

    matrix(a, "x", "y", ("y", 2), BLUE)
    write(a, 3.4, 2.0, column, BLUE, **place)
    tell(a, "Kernel (in, out), axis=0, the default:\na column, all that feeds one output", BLUE,
         4.6, "project_max_norm(c)", "Keras: MaxNorm(c, axis=0)")  # fmt: skip

    matrix(b, "x", "y", ("x", 3), ORANGE)
    write(b, 3.4, 2.5, row, ORANGE, **place)
    tell(b, "The same kernel, axis=1:\na row, all that one input sends out", ORANGE, 4.6,
         "project_max_norm(c, axis=1)", "TensorFlow: clip_by_norm(w, c, axes=1)")  # fmt: skip

    matrix(c, "y", "x", ("y", 2), BLUE)
    write(c, 4.3, 1.5, column, BLUE, **place)
    tell(c, "PyTorch's Linear.weight is (out, in):\nthe same weights of y₂ lie in a row", BLUE, 3.6,
         "torch.renorm(w, 2, dim=0, maxnorm=c)")  # fmt: skip

    convolution(d, 2)
    tell(d, "Convolution (H, W, in, out), the default:\nall 18 weights of one output channel", BLUE,
         4.2, "project_max_norm(c)", "Keras: MaxNorm(c, axis=[0, 1, 2])")  # fmt: skip
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_suffix(".png"), dpi=100)
