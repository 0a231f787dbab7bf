"""Vision-language models behind one contract: encode, loss, score, pooled, generate."""
