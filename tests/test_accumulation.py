"""One large batch and several small ones of a step have one gradient, whatever the answers' lengths."""

import pytest
import pytorch_lightning as pl
import torch

from dashvlm.build import build_module, prepare_data
from dashvlm.data.datamodule import ClipDataModule
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


class Recorder(torch.optim.SGD):
    """An optimiser that only looks."""

    def step(self, closure=None):
        closure()
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]


def drawn(module, batch):
    """Completions that depend on the clip alone."""
    ids, masks, gains = [], [], []
    for name in batch["clip_ids"]:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        for _ in range(2):
            length = int(torch.randint(2, module.room, (1,), generator=generator))
            ids.append(torch.randint(300, 500, (module.room,), generator=generator))
            masks.append(torch.arange(module.room) < length)
            gains.append(torch.randn(1, generator=generator))
    return Rollout(torch.stack(ids), torch.stack(masks).long(), torch.cat(gains), None)


def gradients(cfg, accumulate):
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
    pl.Trainer(
        max_steps=1, accumulate_grad_batches=accumulate, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    ).fit(module, train_dataloaders=loaders.train_dataloader())  # fmt: skip
    return made.seen


@pytest.mark.parametrize("kind", KINDS)
def test_four_batches_of_one_are_one_batch_of_four(kind, config):
    cfg = config(*TINY, *KINDS[kind])
    whole, parts = gradients(cfg, 1), gradients(cfg, 4)
    scale = max(float(g.abs().max()) for g in whole)
    assert scale > 0
    assert len(whole) == len(parts)
    assert max(float((a - b).abs().max()) for a, b in zip(whole, parts, strict=True)) < 1e-5 * scale
