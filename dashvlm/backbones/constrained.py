"""Decoding that can only write a JSON object of a given schema, through xgrammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dashvlm.errors import ConfigError


def keep_to_schema(schema: Mapping[str, Any], tokenizer: Any, vocabulary: int, blank: bool = False) -> Any:
    """Build a logits processor for one call of ``generate``.

    Args:
        schema: the JSON schema.
        tokenizer: of the model, a Hugging Face fast tokenizer.
        vocabulary: width of the model's logits.
        blank: whether a blank may stand before the object, where the chat template writes one before an answer.

    Raises:
        ConfigError: if xgrammar is not installed.
    """
    try:
        import xgrammar
        from xgrammar.contrib.hf import LogitsProcessor
    except ImportError as error:
        raise ConfigError(
            "objective.constrained=true needs xgrammar", got=str(error), do="pip install 'dashvlm[constrained]'"
        ) from error
    words = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary)
    compiler = xgrammar.GrammarCompiler(words)
    whole = xgrammar.Grammar.from_json_schema(json.dumps(dict(schema)), any_whitespace=False)
    if blank:
        whole = xgrammar.Grammar.concat(xgrammar.Grammar.from_regex(" ?"), whole)
    return LogitsProcessor(compiler.compile_grammar(whole))
