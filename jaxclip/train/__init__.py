"""The training program: `jaxclip demo`, `train`, `evaluate`, `compare` and `presets`.

A program on top of the library, imported by no part of it. Each file is one idea. `cli` starts
what the `flags` ask for; `presets` says what can be run, and `config_file` keeps it. `data` and
`mnist` bring the images; `model`, `losses` and `optimizer` build what is trained, with rules that
`specs` reads; `loop` trains, `parallel` spreads that over devices and `processes` over machines,
`nonfinite` says when it has failed; after each epoch `measure` looks at the test images and
`weights` at the kernels. `run`, `compare` (with `together`) and `demo` (with its `stories`) tell it
what to do. `record` and `events` write what happened, `checkpoints` what is needed to go on;
`trace`, `history` and `tensors` hold what `report`, `figures`, `layer_figure` and `compare_report`
show. Clipping rules belong one floor below.
"""
