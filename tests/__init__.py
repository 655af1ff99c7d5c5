"""The tests of jaxclip; nothing here is shipped."""
