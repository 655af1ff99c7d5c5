"""The transformations: rules that clip, guards that skip, and the monitor that records."""
