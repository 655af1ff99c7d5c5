"""The benchmark that compares the presets with the TensorFlow programs of four tutorials."""
