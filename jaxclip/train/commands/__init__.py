"""One file for each command of `jaxclip`."""
