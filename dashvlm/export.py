"""Hand a run over: PEFT adapter, merged model, processor and model card, with a parity check.

python -m dashvlm.export run=runs/RUN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dashvlm.safety.plaintext import say


def export(cfg: DictConfig) -> None:
    """Write ``adapter/``, ``merged/`` and ``README.md`` and print how far its outputs moved.

    Raises:
        ConfigError: if there is no run.
        CheckpointError: if what was merged is not the run that was scored.
    """
    import shutil

    from dashvlm.config.cli import log_to_terminal
    from dashvlm.config.overrides import plain
    from dashvlm.engine.build import load_run
    from dashvlm.engine.run import quiet_libraries
    from dashvlm.errors import CheckpointError, ConfigError
    from dashvlm.safety.files import own

    log_to_terminal()
    quiet_libraries()
    if not cfg.run:
        raise ConfigError("export needs a run", do="python -m dashvlm.export run=runs/RUN")
    if cfg.merge_into not in INTO:
        raise ConfigError(f"merge_into={cfg.merge_into} is unknown", do=f"use one of {', '.join(INTO)}")
    source = Path(cfg.run)
    config, module = load_run(source, plain(cfg)["paths"])
    folder = Path(cfg.output) if cfg.output else own(source / "export")  # a run of somebody else may hold links
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("adapter", "merged", "merged.unchecked", "README.md"):
        own(folder / name)
    if (source / "adapter").is_dir():
        (folder / "adapter").mkdir(exist_ok=True)
        for file in (source / "adapter").iterdir():
            if file.is_file() and not file.is_symlink():
                shutil.copyfile(file, own(folder / "adapter" / file.name))
    unchecked = folder / "merged.unchecked"
    shutil.rmtree(unchecked, ignore_errors=True)
    difference = merge(config, module, source, unchecked, str(cfg.merge_into))
    say(f"parity: largest difference of outputs, the scored run against merged/ as it is loaded: {difference:.2e}")
    quantised = bool(config["peft"].get("quantization"))
    if not difference <= float(cfg.max_difference):
        shutil.rmtree(unchecked)
        again = "merge_into=dequantised merges into the 4-bit weights that were scored, unpacked; " if quantised else ""
        raise CheckpointError(
            "merged weights are not the run that was scored; they were not kept",
            got=f"outputs differ by {difference:.3g}, max_difference={cfg.max_difference:g}"
            + ("; the adapter was trained and scored on a 4-bit base and merged into the original one" * quantised),
            do=f"{again}adapter/ holds the run exactly; or accept it with max_difference={difference * 1.1:.2g}",
        )
    shutil.rmtree(folder / "merged", ignore_errors=True)
    unchecked.rename(folder / "merged")
    (folder / "README.md").write_text(
        model_card(config, source, difference, getattr(module.backbone.encoder, "processor", None)), encoding="utf-8"
    )
    say(f"written: {folder}/")


INTO = ("original", "dequantised")


def merge(config: dict[str, Any], module: Any, source: Path, target: Path, into: str = "original") -> float:
    """Write the merged network and its processor; return how far any logit of it is from the run's.

    Args:
        config: of the run.
        module: the run as it was scored.
        source: the run's folder.
        target: where to write.
        into: of a 4-bit run, the base that the adapter is merged into: ``original`` (reloaded in bfloat16), or
            ``dequantised`` (the 4-bit weights that were scored, unpacked).

    Returns:
        The largest difference of outputs (logits, or an encoder's tokens) between the scored run and the written
        folder, loaded again.
    """
    import copy

    import torch
    import transformers
    from safetensors.torch import save_file

    from dashvlm.backbones.adapters import load_trained
    from dashvlm.backbones.processors import save_processor
    from dashvlm.engine.build import build_module, read_safetensors

    batch = _example(config, module)
    with torch.no_grad():
        before = module.backbone.raw(_plain(module.backbone.net), batch).float()
    if config["peft"].get("quantization"):
        plain = copy.deepcopy(config)
        plain["peft"]["quantization"], plain["model"]["dtype"] = None, "bfloat16"
        scored, module = module, build_module(plain, for_training=False)
        if into == "dequantised":
            _unpack(scored.backbone.net, module.backbone.net)
        load_trained(module, read_safetensors(source / "trained.safetensors"), str(source))
        module.eval()
    net = module.backbone.net
    _untie(net)
    merged = net.merge_and_unload() if hasattr(net, "merge_and_unload") else net
    merged.save_pretrained(str(target))
    encoder = module.backbone.encoder
    if hasattr(encoder, "processor"):
        save_processor(encoder.processor, target)
    else:
        (target / "preprocessor_config.json").write_text(json.dumps(encoder.settings), encoding="utf-8")
    own = {n: p.detach().cpu().contiguous() for n, p in module.named_parameters() if not n.startswith("backbone.")}
    if own:
        save_file(own, target / "head.safetensors")
    auto = getattr(transformers, module.backbone.auto_class)
    again = auto.from_pretrained(target, trust_remote_code=False, dtype="auto").eval()
    with torch.no_grad():
        after = module.backbone.raw(again, _example(config, module, again.dtype)).float()
    return float((before - after).abs().max())


def _plain(net: Any) -> Any:
    """The network without PEFT's wrapper; adapters stay where they are."""
    return net.get_base_model() if hasattr(net, "get_base_model") else net


def _unpack(packed: Any, plain: Any) -> None:
    """Copy 4-bit weights, unpacked, into the network of the same names."""
    import bitsandbytes

    targets = dict(plain.named_modules())
    for name, layer in packed.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            targets[name].weight.data.copy_(weight)


def _untie(net: Any) -> None:
    """Give the output layer weights of its own where an adapter sits on it: merged, they are no embeddings."""
    import torch

    base = _plain(net)
    if not hasattr(base, "get_output_embeddings") or base.get_output_embeddings() is None:
        return
    head, words = base.get_output_embeddings(), base.get_input_embeddings()
    layer = getattr(head, "base_layer", None)
    if layer is None or layer.weight is not words.weight:
        return
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False


def model_card(config: dict[str, Any], source: Path, difference: float, processor: Any = None) -> str:
    """Write a model card with the run's numbers, its data and how to load it."""
    from dashvlm.report.collect import read_result
    from dashvlm.report.tables import result_table, to_markdown

    result = read_result(source)
    header, body = result_table(result)
    data, counts = config["data"], result["counts"]
    alarms = [f"alarm: {a}" for a in result["alarms"]]
    checkpoint = str(config["model"]["checkpoint"])
    base = str((config["model"].get("sizes") or {}).get(checkpoint, checkpoint))
    return (
        f"# {source.name}\n\n"
        f"{config['model']['name']} ({config['model']['checkpoint']}) for `{config['task']['name']}`, trained with "
        f"`objective={config['objective']['name']}` and `peft={config['peft']['method']}` on `{data['name']}`: "
        f"{data['num_frames']} frames, {data['frame_interval_s']} s apart, ending "
        f"{data['horizon_s']} s before the event.\n\n"
        f"Numbers on {counts['test_clips']} {result['split']} clips in {counts['groups']} groups, with 95 % intervals "
        f"clustered by group:\n\n{to_markdown(header, body, alarms)}\n"
        f"The merged weights give the outputs of the scored run to within {difference:.1e}.\n\n"
        "```python\n"
        "from transformers import AutoModelForImageTextToText\n"
        "from peft import PeftModel\n"
        'merged = AutoModelForImageTextToText.from_pretrained("merged")\n'
        f'adapted = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained("{base}"), "adapter")\n'
        "```\n" + (VIDEO_HALF if hasattr(processor, "video_processor") else "")
    )


VIDEO_HALF = (
    '\nThis family\'s processor has a video half: `AutoProcessor.from_pretrained("merged")` needs '
    '`pip install torchvision`. Without it `dashvlm.backbones.processors.load_processor("merged")` loads the image '
    "half, which is what was trained with.\n"
)


def _example(config: dict[str, Any], module: Any, dtype: Any = None) -> dict[str, Any]:
    """One prompt with fixed random frames, enough to compare logits; pixels in the network's type."""
    import numpy as np

    from dashvlm.data.clip import Observation

    count = int(config["data"]["num_frames"])
    seen = Observation(tuple(0.5 * i for i in range(count)), "What is ahead?", ("a car", "a bus"))
    frames = np.random.default_rng(0).integers(0, 255, (count, 96, 160, 3), dtype=np.uint8)
    batch = dict(module.backbone.encoder.encode([module.task.messages(seen)], [frames]))
    wanted = dtype or next(p.dtype for p in module.backbone.net.parameters() if p.is_floating_point())
    return {k: v.to(wanted) if v.is_floating_point() else v for k, v in batch.items()}


if __name__ == "__main__":
    from dashvlm.safety import signals

    def main() -> int:
        """Run the verb."""
        from dashvlm.config.cli import start

        return start("export", export, sys.argv[1:])

    sys.exit(signals.run(main))
