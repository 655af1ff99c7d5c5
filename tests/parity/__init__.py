"""The same numbers as the peers' own libraries."""
