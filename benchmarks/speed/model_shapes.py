"""Names and shapes of the leaves of the models in the benchmark of speed.

GPT-2 and ResNet-50 have the shapes of the published models. Each model has a small version for
smoke runs, large enough that its gradients are clipped.
"""

Shapes = dict[str, tuple[int, ...]]


def transformer(width: int, layers: int, words: int, positions: int) -> Shapes:
    """Returns a decoder like GPT-2, whose word embedding is also its last layer."""
    norm = {"scale": (width,), "bias": (width,)}
    block = {
        **{f"ln_1/{key}": shape for key, shape in norm.items()},
        **dense("attention/qkv", width, 3 * width),
        **dense("attention/out", width, width),
        **{f"ln_2/{key}": shape for key, shape in norm.items()},
        **dense("mlp/in", width, 4 * width),
        **dense("mlp/out", 4 * width, width),
    }
    blocks = {f"{i:02d}/{key}": shape for i in range(layers) for key, shape in block.items()}
    ends = {f"ln_f/{key}": shape for key, shape in norm.items()}
    return {"words": (words, width), "positions": (positions, width)} | blocks | ends


def dense(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def convolution(name: str, size: int, inputs: int, outputs: int) -> Shapes:
    """Returns a convolution without bias, and the batch norm after it."""
    kernel = {f"{name}/kernel": (size, size, inputs, outputs)}
    return kernel | {f"{name}/norm/scale": (outputs,), f"{name}/norm/bias": (outputs,)}


def resnet(blocks: tuple[int, ...], width: int, classes: int) -> Shapes:
    """Returns a residual network of bottleneck blocks; ResNet-50 has 3, 4, 6 and 3 a stage."""
    tree, inputs = convolution("stem", 7, 3, width), width
    for stage, count in enumerate(blocks):
        inner, outputs = width * 2**stage, 4 * width * 2**stage
        for block in range(count):
            name = f"{stage}/{block}"
            tree |= convolution(f"{name}/1", 1, inputs, inner)
            tree |= convolution(f"{name}/2", 3, inner, inner)
            tree |= convolution(f"{name}/3", 1, inner, outputs)
            if block == 0:
                tree |= convolution(f"{name}/shortcut", 1, inputs, outputs)
            inputs = outputs
    return tree | dense("head", inputs, classes)


def small(leaves: int) -> Shapes:
    """Returns leaves of about 1,000 elements, kernels and vectors in turn."""
    return {f"{i:04d}": (1000,) if i % 2 else (31, 33) for i in range(leaves)}


TREES = {
    "GPT-2": lambda: transformer(768, 12, 50_257, 1024),
    "38 M": lambda: transformer(512, 8, 24_000, 1024),
    "ResNet-50": lambda: resnet((3, 4, 6, 3), 64, 1000),
    "1000 leaves": lambda: small(1000),
}
SMALL = {
    "GPT-2": lambda: transformer(64, 2, 512, 32),
    "38 M": lambda: transformer(64, 1, 1024, 32),
    "ResNet-50": lambda: resnet((1, 1), 16, 10),
    "1000 leaves": lambda: small(100),
}


def tree(name: str, *, smoke: bool = False) -> Shapes:
    """Returns a model by name, or its small version."""
    return (SMALL if smoke else TREES)[name]()
