"""Files of a run: written while it trains, read back for figures, summaries and resuming."""
