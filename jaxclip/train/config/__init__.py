"""Settings of a run: presets, config files, and rules written as text."""
