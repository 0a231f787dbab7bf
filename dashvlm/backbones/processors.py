"""Hugging Face processors with and without torchvision."""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import cached_file

from dashvlm.errors import CheckpointError


def load_processor(checkpoint: str) -> Any:
    """Load a processor; without torchvision, its image half only.

    transformers refuses to build a processor whose video half needs torchvision. Frames are
    handed over as images, so that half is not needed.
    """
    if _json(checkpoint, "processor_config.json").get("processor_class") == "OpenFlamingoProcessor":
        from dashvlm.backbones.openflamingo.processing import OpenFlamingoProcessor

        return OpenFlamingoProcessor.from_pretrained(checkpoint)
    try:
        return transformers.AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    except (ImportError, ValueError) as error:
        if "orchvision" not in str(error):
            raise
    config = _json(checkpoint, "processor_config.json")
    name = config.get("processor_class") or _json(checkpoint, "preprocessor_config.json").get("processor_class")
    if not name:
        raise CheckpointError(f"{checkpoint}: no processor class is named", do="install dashvlm[video]")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    images = transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    keep = ("image_seq_len", "image_seq_length")
    kept = {k: v for k, v in config.items() if k in keep}
    return image_only(name, images, tokenizer, _template(checkpoint, tokenizer), kept)


def image_only(name: str, images: Any, tokenizer: Any, chat_template: str, options: Mapping[str, Any]) -> Any:
    """Build a processor of the class ``name`` without its video half."""
    stub = types.SimpleNamespace(num_frames=None, fps=None, model_input_names=[], valid_kwargs=None)
    return _lenient(getattr(transformers, name))(images, tokenizer, stub, chat_template=chat_template, **options)


def save_processor(processor: Any, folder: Path) -> None:
    """Save a processor in hub layout; of an image-only one, the halves that exist."""
    if not isinstance(getattr(processor, "video_processor", None), types.SimpleNamespace):
        processor.save_pretrained(folder)
        return
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")
    keep = ("image_seq_len", "image_seq_length")
    config = {k: getattr(processor, k) for k in keep if hasattr(processor, k)}
    config["processor_class"] = type(processor).__name__
    (folder / "processor_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


@functools.cache
def _lenient(base: type) -> type:
    def accept(self: Any, argument_name: str, argument: Any) -> type:
        return type(argument)

    return type(base.__name__, (base,), {"check_argument_for_proper_class": accept})


def _json(checkpoint: str, name: str) -> dict[str, Any]:
    path = cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
    return dict(json.loads(Path(path).read_text(encoding="utf-8"))) if path else {}


def _template(checkpoint: str, tokenizer: Any) -> str:
    """The chat template, from where new and old checkpoints keep it."""
    path = cached_file(checkpoint, "chat_template.jinja", _raise_exceptions_for_missing_entries=False)
    if path:
        return Path(path).read_text(encoding="utf-8")
    return str(_json(checkpoint, "chat_template.json").get("chat_template") or tokenizer.chat_template)
