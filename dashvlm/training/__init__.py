"""What all objectives share: the Lightning module, optimisers, callbacks, loggers."""
