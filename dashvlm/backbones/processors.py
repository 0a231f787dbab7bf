"""Hugging Face processors with and without torchvision."""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.utils import cached_file

from dashvlm.errors import CheckpointError


def load_processor(checkpoint: str, revision: str | None = None) -> Any:
    """Load a processor; without torchvision, its image half only.

    transformers refuses to build a processor whose video half needs torchvision. Frames are
    handed over as images, so that half is not needed.

    Args:
        checkpoint: hub id or folder.
        revision: branch, tag or commit of a hub id.

    Raises:
        CheckpointError: if the checkpoint does not say what its processor is.
    """
    if _json(checkpoint, "processor_config.json", revision).get("processor_class") == "OpenFlamingoProcessor":
        from dashvlm.backbones.openflamingo.processing import OpenFlamingoProcessor

        return OpenFlamingoProcessor.from_pretrained(checkpoint, revision)
    try:
        return transformers.AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False, revision=revision)
    except (ImportError, ValueError) as error:
        if "orchvision" not in str(error) and UNKNOWN not in str(error):
            raise
    config = _json(checkpoint, "processor_config.json", revision)
    about = _json(checkpoint, "preprocessor_config.json", revision)
    name = config.get("processor_class") or about.get("processor_class")
    if not name:
        raise CheckpointError(f"{checkpoint}: no processor class is named", do="install dashvlm[video]")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False, revision=revision)
    images = _image_processor(checkpoint, revision)
    keep = ("image_seq_len", "image_seq_length")
    kept = {k: v for k, v in config.items() if k in keep}
    return image_only(name, images, tokenizer, _template(checkpoint, tokenizer, revision), kept)


UNKNOWN = "Unrecognized image processor"


def _image_processor(checkpoint: str, revision: str | None) -> Any:
    """The image processor that a checkpoint names; of its model's type where transformers has dropped that name."""
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            checkpoint, trust_remote_code=False, backend="pil", revision=revision
        )
    except ValueError as error:
        if UNKNOWN not in str(error):
            raise
    kind = str(_json(checkpoint, "config.json", revision).get("model_type"))
    known = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind) or {}
    named = _json(checkpoint, "preprocessor_config.json", revision).get("image_processor_type")
    if "pil" not in known:
        raise CheckpointError(
            f"{checkpoint}: its image processor is not known", got=f"image_processor_type {named}, model_type {kind}",
            do="use a version of transformers that has it",
        )  # fmt: skip
    return getattr(transformers, known["pil"]).from_pretrained(checkpoint, revision=revision)


def image_only(name: str, images: Any, tokenizer: Any, chat_template: str, options: Mapping[str, Any]) -> Any:
    """Build a processor of the class ``name`` without its video half."""
    base = getattr(transformers, name, None)  # the name may come from a stranger's file
    if not (isinstance(base, type) and issubclass(base, transformers.ProcessorMixin)):
        raise CheckpointError("processor_class is no processor of transformers", got=str(name)[:100],
                              do="take the checkpoint from where it was published")  # fmt: skip
    stub = types.SimpleNamespace(num_frames=None, fps=None, model_input_names=[], valid_kwargs=None)
    return _lenient(base)(images, tokenizer, stub, chat_template=chat_template, **options)


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


def _json(checkpoint: str, name: str, revision: str | None = None) -> dict[str, Any]:
    path = cached_file(checkpoint, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return dict(json.loads(Path(path).read_text(encoding="utf-8"))) if path else {}


def _template(checkpoint: str, tokenizer: Any, revision: str | None) -> str:
    """The chat template, from where new and old checkpoints keep it."""
    name = "chat_template.jinja"
    path = cached_file(checkpoint, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    if path:
        return Path(path).read_text(encoding="utf-8")
    return str(_json(checkpoint, "chat_template.json", revision).get("chat_template") or tokenizer.chat_template)
