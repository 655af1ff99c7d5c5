"""What a person sees: lines on the terminal, tables and figures."""
