"""The training program: `jaxclip demo`, `jaxclip train` and `jaxclip presets`.

A program on top of the library, imported by no part of it. Each file is one idea: `cli` reads the
command line, `presets` says what can be run, `data` and `mnist` bring the images, `model`, `losses`
and `optimizer` build what is trained, `specs` reads a rule as it is written there, `loop` trains,
`weights` looks at the kernels after each epoch, `run` and `demo` (with its `stories`) tell the loop
what to do, and `trace`, `record`, `report` and `figures` keep and show what happened. Clipping
rules belong one floor below.
"""
