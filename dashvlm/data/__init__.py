"""Clips, the times to look at, the frames at those times, and the loaders that serve them."""
