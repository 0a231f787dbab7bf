"""dashvlm: which dashcam vision-language model, how many frames, and can the number be trusted?

Importing the package is cheap: torch is loaded only by the parts that need it.
"""

__version__ = "0.1.0"
