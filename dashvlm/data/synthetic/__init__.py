"""A small dashcam world with exact ground truth, rendered to real H.264 files."""
