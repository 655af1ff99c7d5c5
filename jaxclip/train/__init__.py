"""The training program: `jaxclip demo`, `train`, `evaluate`, `compare`, `diagnose`, `presets`.

It uses the library's public names; the library never imports it. Imports go down this list only:

- `cli`: flags, and which command they start
- `commands`: one file for each command
- `reporting`: terminal lines, tables and figures
- `recording`: files in a run's folder: metrics, checkpoints, TensorBoard events
- `training`: network, optimizer, loop, devices and processes
- `config`: presets, config files, and rules written as text
- `data`: images and labels
- `errors`, `signals`: errors of the user, printed in one line; signals that end the program
- `streams`: output that may be lost without harm
- `words`: counts with their nouns, and the name that a misspelt one resembles
"""
