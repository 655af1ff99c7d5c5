"""Tools for developers of jaxclip; the distributions do not contain them."""
