"""Networks, optimizers and the training loop; nothing here prints or writes files."""
