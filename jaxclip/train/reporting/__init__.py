"""Terminal output, tables and figures."""
