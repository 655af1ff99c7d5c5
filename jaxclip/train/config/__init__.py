"""The settings of a run: presets, files that hold them, and rules written as text."""
