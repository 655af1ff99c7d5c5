"""The benchmark of training with bad batches."""
