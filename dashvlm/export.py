"""Hand a run over: PEFT adapter, merged model, processor and model card, with a parity check.

python -m dashvlm.export run=runs/RUN
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def export(cfg: DictConfig) -> None:
    """Write ``adapter/``, ``merged/`` and ``README.md`` and print how far the logits moved."""
    import shutil

    from dashvlm.build import load_run
    from dashvlm.cli import log_to_terminal
    from dashvlm.errors import ConfigError
    from dashvlm.run import quiet_libraries

    log_to_terminal()
    quiet_libraries()
    if not cfg.run:
        raise ConfigError("export needs a run", do="python -m dashvlm.export run=runs/RUN")
    source = Path(cfg.run)
    config, module = load_run(source)
    folder = Path(cfg.output or source / "export")
    folder.mkdir(parents=True, exist_ok=True)
    if (source / "adapter").is_dir():
        shutil.copytree(source / "adapter", folder / "adapter", dirs_exist_ok=True)
    difference = merge(config, module, source, folder / "merged")
    print(f"parity: largest difference of logits, adapter against merged, {difference:.2e}")
    (folder / "README.md").write_text(model_card(config, source, difference), encoding="utf-8")
    print(f"written: {folder}/")


def merge(config: dict[str, Any], module: Any, source: Path, target: Path) -> float:
    """Write the merged network and its processor; return the largest change of any logit.

    A 4-bit run is merged into a bfloat16 reload of its base: merging into 4-bit weights rounds.
    """
    import copy

    import torch
    from safetensors.torch import save_file

    from dashvlm.backbones.adapters import load_trained
    from dashvlm.backbones.processors import save_processor
    from dashvlm.build import build_module, read_safetensors

    if config["peft"].get("quantization"):
        plain = copy.deepcopy(config)
        plain["peft"]["quantization"], plain["model"]["dtype"] = None, "bfloat16"
        module = build_module(plain, for_training=False)
        load_trained(module, read_safetensors(source / "trained.safetensors"), str(source))
        module.eval()
    batch = _example(config, module)
    net = module.backbone.net
    with torch.no_grad():
        before = net(**batch).logits.float()
        merged = net.merge_and_unload() if hasattr(net, "merge_and_unload") else net
        after = merged(**batch).logits.float()
    merged.save_pretrained(str(target))
    save_processor(module.backbone.encoder.processor, target)
    own = {n: p.detach().cpu().contiguous() for n, p in module.named_parameters() if not n.startswith("backbone.")}
    if own:
        save_file(own, target / "head.safetensors")
    return float((before - after).abs().max())


def model_card(config: dict[str, Any], source: Path, difference: float) -> str:
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
        f"Merging moved no logit by more than {difference:.1e}.\n\n"
        "```python\n"
        "from transformers import AutoModelForImageTextToText\n"
        "from peft import PeftModel\n"
        'merged = AutoModelForImageTextToText.from_pretrained("merged")\n'
        f'adapted = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained("{base}"), "adapter")\n'
        "```\n"
    )


def _example(config: dict[str, Any], module: Any) -> dict[str, Any]:
    """One prompt with fixed random frames, enough to compare logits."""
    import numpy as np

    from dashvlm.data.clip import Observation

    count = int(config["data"]["num_frames"])
    seen = Observation(tuple(0.5 * i for i in range(count)), "What is ahead?", ("a car", "a bus"))
    frames = np.random.default_rng(0).integers(0, 255, (count, 96, 160, 3), dtype=np.uint8)
    return dict(module.backbone.encoder.encode([module.task.messages(seen)], [frames]))


if __name__ == "__main__":
    from dashvlm.cli import start

    sys.exit(start("export", export, sys.argv[1:]))
