"""dashvlm: which dashcam vision-language model, how many frames, and can the number be trusted?

Importing the package is cheap: torch is loaded only by the parts that need it.
"""

import logging

__version__ = "0.1.0"

# On a CPU bitsandbytes reports at import that a faster kernel is missing; nobody can act on it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
