"""One large batch and several small ones of a step have one gradient, whatever the answers' lengths."""

import os
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch

from dashvlm.data.datamodule import ClipDataModule
from dashvlm.engine.build import build_module
from dashvlm.engine.prepare import prepare_data
from dashvlm.objectives.grpo import Rollout

TINY = [
    "model=smolvlm2", "model.checkpoint=tiny", "data=synthetic", "data.options.num_drives=10", "data.num_frames=2",
    "trainer.accelerator=cpu", "peft.dropout=0", "data.frame_size=null", "data.num_workers=0",
]  # fmt: skip
KINDS = {
    "sft": ["task=caption", "objective=sft"],
    "reasoned": ["task=crash", "task.reasoning=true", "objective=sft", "objective.reasoning_weight=0.3",
                 "objective.accuracy_penalty=2"],
    "dpo": ["task=caption", "task.pairs=wrong_positions", "objective=dpo"],
    "dpo, normalised": ["task=caption", "task.pairs=wrong_positions", "objective=dpo",
                        "objective.variant=length_normalised"],
    **{f"grpo, {loss}": ["task=crash", "task.reasoning=true", "objective=grpo", f"objective.loss={loss}"]
       for loss in ("grpo", "bnpo", "dr_grpo")},
}  # fmt: skip


KEEP = "TEST_GRADIENTS"
"""Environment variable: the file that a process of several puts its gradients into."""


class Recorder(torch.optim.SGD):
    """An optimiser that only looks."""

    def step(self, closure=None):
        closure()
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]
        if os.environ.get(KEEP) and (not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0):
            torch.save(self.seen, os.environ[KEEP])


def drawn(module, batch):
    """Completions that depend on the clip alone."""
    ids, masks, gains = [], [], []
    for name in batch["clip_ids"]:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        for _ in range(2):
            length = int(torch.randint(2, module.max_new_tokens, (1,), generator=generator))
            ids.append(torch.randint(300, 500, (module.max_new_tokens,), generator=generator))
            masks.append(torch.arange(module.max_new_tokens) < length)
            gains.append(torch.randn(1, generator=generator))
    return Rollout(torch.stack(ids), torch.stack(masks).long(), torch.cat(gains), None)


def gradients(cfg, accumulate, processes=1):
    cfg = {**cfg, "data": {**cfg["data"], "batch_size": 4 // accumulate}}
    data, module = prepare_data(cfg), build_module(cfg)
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:  # zeros would hide half of the gradients
            torch.nn.init.normal_(parameter, std=0.02)
    if cfg["objective"]["name"] == "grpo":
        module.roll_out = lambda batch: drawn(module, batch)
    made = Recorder([p for p in module.parameters() if p.requires_grad], lr=0.0)
    module.configure_optimizers = lambda: made
    samples = {"train": module.usable(data.samples["train"])}
    loaders = ClipDataModule(samples, data.store, module.collate, cfg["data"], 0, accumulate, 1, accumulate)
    several = {"devices": processes, "strategy": "ddp_fork"} if processes > 1 else {}
    pl.Trainer(
        max_steps=1, accumulate_grad_batches=accumulate, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
        **several,
    ).fit(module, datamodule=loaders)  # fmt: skip
    return getattr(made, "seen", None)


@pytest.mark.parametrize("kind", KINDS)
def test_four_batches_of_one_are_one_batch_of_four(kind, config):
    cfg = config(*TINY, *KINDS[kind])
    whole, parts = gradients(cfg, 1), gradients(cfg, 4)
    scale = max(float(g.abs().max()) for g in whole)
    assert scale > 0
    assert len(whole) == len(parts)
    assert max(float((a - b).abs().max()) for a, b in zip(whole, parts, strict=True)) < 1e-5 * scale


MORE = [pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("reasoned", "dpo", "grpo, bnpo", "grpo, grpo")]


@pytest.mark.parametrize("kind", ["sft", *MORE])
def test_two_processes_have_the_gradient_of_one(kind, config, tmp_path, cache):
    """The process group is real; it is forked from a process of its own."""
    from .conftest import ROOT

    whole = gradients(config(*TINY, *KINDS[kind]), 1)
    words = [*TINY, *KINDS[kind], f"paths.cache_dir={cache}", f"paths.output_dir={tmp_path}"]
    environment = {**os.environ, KEEP: str(tmp_path / "kept.pt"), "PYTHONPATH": str(ROOT)}
    code = "import sys; from tests.test_accumulation import *; from dashvlm.config.cli import compose_train; " \
        "gradients(compose_train(sys.argv[2:]), int(sys.argv[1]), 2)"  # fmt: skip
    for accumulate in (2,) if kind == "sft" else (1, 2):
        done = subprocess.run([sys.executable, "-c", code, str(accumulate), *words], cwd=ROOT, env=environment,
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        parts = torch.load(tmp_path / "kept.pt")
        scale = max(float(g.abs().max()) for g in whole)
        assert max(float((a - b).abs().max()) for a, b in zip(whole, parts, strict=True)) < 1e-5 * scale
