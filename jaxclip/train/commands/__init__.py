"""The commands of `jaxclip`, one file each."""
