"""Tiny random-weight twins of real checkpoints, described by the ``twin`` part of a model's YAML.

A twin is saved in hub layout and loaded by the very code that loads a hub id, so what runs on a
laptop in seconds is the path that runs on a GPU. Weights depend on the YAML and torch only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from dashvlm.backbones.processors import image_only, save_processor
from dashvlm.config.imports import resolve
from dashvlm.errors import ConfigError

log = logging.getLogger(__name__)

# What the tokenizer is trained on: the words of the prompts and answers, in both languages.
CORPUS = (
    "0.0 s ago: 0.5 s ago: 1.0 s ago: 1.5 s ago: 2.0 s ago: 10.5 s ago: 3 4 5 6 7 8 9",
    "Is a vehicle collision likely to happen within 1 to 2 seconds? Answer Yes or No.",
    "User: Assistant: Yes Assistant: No user assistant system You are a helpful assistant.",
    "Assistant: A Assistant: B Assistant: C Assistant: D Frame 1: Frame 2: answer choices letter",
    "car pedestrian sidewalk road left right front center traffic light sign red green yellow",
    "Câu hỏi lựa chọn đáp án hình ảnh biển báo đèn đỏ xanh vàng đường xe trái phải không có",
    "Trời sáng hay tối? Thời tiết thế nào? Xe phía trước màu gì? Bây giờ là ban đêm, đúng hay sai? Đường có tuyết",
    "Trời có sương mù, Đây là đường cao tốc, A. Đúng B. Sai ban ngày hoàng hôn ban đêm quang mưa sương mù tuyết",
    "xanh dương trắng đen xanh lá Đáp án: Answer: A. day B. dusk C. night D. clear rain fog snow highway",
    "Sidewalk: center. Road: left. RoadVsSidewalk: left_of. Nearby: no important close objects visible. Context:",
    "Sidewalk: right. Road: unknown. RoadVsSidewalk: right_of crossing_front. Far: an obstacle farther away on",
    "a person close on the center and right; 2 bicycles; a car; a traffic sign; a traffic light; people. The sidewalk",
    "centered in the view, with a road on the right, leading to a road in front, without a road in sight. The path is",
    "partially obstructed. clear. You MUST always output: Sidewalk position and Road position (relative to the image).",
    "What time of day is it? What is the weather? What colour is the vehicle ahead? Is it night? Is this a",
    "**Scene Description:** **Driving Parameters (JSON):** **Risk Assessment:** ```json ```",
    "A residential road by day at dusk at night, weather clear. A red blue white black green yellow vehicle is ahead.",
    "The traffic light is red. A pedestrian is on the left. The vehicle ahead is getting closer fast. Risk is low.",
    "The gap to the vehicle ahead is steady. Describe the scene from a driving and safety perspective in these",
    '{\n  "road_type": "urban",\n  "lane_count": "3",\n  "ego_lane_position": "middle",'
    '\n  "traffic_light_state": "none",'
    '\n  "pedestrian_on_road": "no",\n  "closest_vehicle_distance": "close",\n  "ego_vehicle_speed": "slow",'
    '\n  "road_curvature": "straight",\n  "weather": "clear",\n  "visibility": "good",'
    '\n  "traffic_density": "low",\n  "risk_factor": "medium"\n}',
)
VOCABULARY = 1024


def twin_folder(spec: Mapping[str, Any], cache: Path) -> Path:
    """Return a folder with the twin's checkpoint, building it on first use.

    Args:
        spec: the ``twin`` part of a model's YAML, as plain values.
        cache: folder for all twins; several processes may share it.
    """
    text = json.dumps([spec, CORPUS, VOCABULARY, torch.__version__], sort_keys=True)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:16]
    if folder.exists():  # perhaps on a read-only disk
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            building = folder.with_suffix(".tmp")
            shutil.rmtree(building, ignore_errors=True)
            _build(spec, building)
            building.rename(folder)
    return folder


def config_of_twin(spec: Mapping[str, Any], folder: Path | None) -> Any:
    """Return the config a twin's spec describes; token ids come from its folder, or are placeholders."""
    tokenizer = (
        transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False) if folder else _Placeholder()
    )
    return _config(spec, tokenizer)


def model_class(spec: Mapping[str, Any]) -> Any:
    """Return the network's class."""
    return _class(spec["model"])


class _Placeholder:
    """Stands in for a tokenizer where only dimensions matter."""

    def __len__(self) -> int:
        return 0

    def convert_tokens_to_ids(self, token: str) -> int:
        return 0


def _build(spec: Mapping[str, Any], folder: Path) -> None:
    reads = "tokenizer" in spec  # a vision encoder has settings of its pixels only
    tokenizer: Any = _tokenizer(spec) if reads else _Placeholder()
    processor = _processor(spec, tokenizer) if reads else None
    config = _config(spec, tokenizer)
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        net = _class(spec["model"])(config)
        # Some families start with gates at zero, where pixels have no effect and get no gradient.
        for pattern, value in (spec.get("fill") or {}).items():
            for name, parameter in net.named_parameters():
                if re.search(pattern, name):
                    parameter.data.fill_(float(value))
    if not reads:
        net.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(spec["settings"]), encoding="utf-8")
        return
    settings = dict(spec.get("generation") or {})
    ends = settings.pop("ends", None) or [tokenizer.eos_token]
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ends]
    net.generation_config.update(pad_token_id=tokenizer.pad_token_id, eos_token_id=ids if len(ids) > 1 else ids[0])
    net.generation_config.update(**settings)
    net.to(getattr(torch, spec.get("dtype", "float32"))).save_pretrained(folder)
    save_processor(processor, folder)
    log.info(
        "built a tiny %s with %s parameters in %s",
        spec["model"],
        f"{sum(p.numel() for p in net.parameters()):,}",
        folder,
    )


def _tokenizer(spec: Mapping[str, Any]) -> Any:
    """Train a byte-level BPE; special tokens come first, ``appended`` ones after the vocabulary."""
    options = dict(spec["tokenizer"])
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(options.pop("special")),
        show_progress=False,
    )
    base.train_from_iterator([line for line in CORPUS for _ in range(4)], trainer)
    base.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in options.pop("appended", ())])
    begins = options.pop("begins_with", None)
    if begins:  # in a post-processor, as Llama's tokenizer does it
        special = [(begins, base.token_to_id(begins))]
        base.post_processor = processors.TemplateProcessing(single=f"{begins} $A", special_tokens=special)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=base, padding_side="left", **options)


def _processor(spec: Mapping[str, Any], tokenizer: Any) -> Any:
    """Build the processor; its video half only where torchvision allows it."""
    options = {k: v for k, v in spec["processor"].items() if k != "class"}
    name, template = spec["processor"]["class"], spec["chat_template"]
    if not spec.get("video_processor"):
        suffix = "" if transformers.utils.is_torchvision_available() else "Pil"
        images = _make(spec["image_processor"], suffix)
        return _class(name)(images, tokenizer, chat_template=template, **options)
    if not transformers.utils.is_torchvision_available():
        images = _make(spec["image_processor"], "Pil")
        return image_only(name, images, tokenizer, template, options)
    parts = _make(spec["image_processor"]), tokenizer, _make(spec["video_processor"])
    return _class(name)(*parts, chat_template=template, **options)


def _config(spec: Mapping[str, Any], tokenizer: Any) -> Any:
    """Build the model's config, with ``id:<token>`` and ``vocab`` replaced by numbers."""

    def fill(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: fill(v) for k, v in value.items()}
        if isinstance(value, list):
            return [fill(v) for v in value]
        if value == "vocab_all":
            return len(tokenizer)
        if value == "vocab":
            appended = len(spec["tokenizer"].get("appended", ()))
            return len(tokenizer) - appended
        if isinstance(value, str) and value.startswith("id:"):
            return tokenizer.convert_tokens_to_ids(value[3:])
        return value

    return _make(fill(spec["config"]))


def _make(spec: Mapping[str, Any], suffix: str = "") -> Any:
    return _class(str(spec["class"]) + suffix)(**{k: v for k, v in spec.items() if k != "class"})


PARTS = (
    transformers.PreTrainedModel,
    transformers.PreTrainedConfig,
    transformers.ProcessorMixin,
    transformers.image_processing_base.ImageProcessingMixin,
)
"""What a twin is made of; nothing else of transformers may be named."""


def _class(name: str) -> Any:
    if "." in name:  # a class of ours
        return resolve("backbone", name)
    made = getattr(transformers, name, None) if re.fullmatch(r"[A-Za-z]\w*", name) else None
    if not (isinstance(made, type) and issubclass(made, PARTS)):
        raise ConfigError(
            "model.twin names what is no model, configuration or processor of transformers", got=name[:200],
            do="name one of its classes",
        )  # fmt: skip
    return made
