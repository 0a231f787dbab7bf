"""A chat endpoint on the network: asking it, counting what it costs, keeping what was paid for. Loads no torch."""
