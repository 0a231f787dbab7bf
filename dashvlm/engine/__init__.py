"""One run: data and model from a configuration, training, predictions, numbers. Imports no Hydra."""
