"""Vision-language models behind one contract: encode, loss, score, pooled, generate."""

import logging

# On a CPU bitsandbytes reports at import that a faster kernel is missing; nobody can act on it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
