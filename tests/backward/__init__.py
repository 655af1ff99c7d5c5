"""`jaxclip.backward`: rules for cotangents."""
