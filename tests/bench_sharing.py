"""What a sweep costs: against an earlier checkout of dashvlm, and against the loop that trainers of the field run.

Run by ``tests/bench.py``; each side is a process of its own whose CPU seconds are counted after its imports.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FRAMES, INTERVALS = (5, 10, 15, 20), (0.5, 1.0, 1.5)
GRID = [(n, dt) for n in FRAMES for dt in INTERVALS]
EPOCHS, BATCH, LR = 3, 4, 1e-4
HORIZONS = (0.5, 1.0, 1.5)
QUESTION = "Is a vehicle collision likely to happen within 1 to 2 seconds? Answer Yes or No."

PROPORTIONS = {
    "model": "SmolVLMForConditionalGeneration",
    "config": {
        "vision_config": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 1,
                          "num_attention_heads": 6, "image_size": 512, "patch_size": 16},
        "text_config": {"hidden_size": 480, "intermediate_size": 1280, "num_hidden_layers": 2,
                        "num_attention_heads": 8, "num_key_value_heads": 4},
        "scale_factor": 4,
    },
}  # fmt: skip
"""SmolVLM2-500M's picture (512 pixels, 1,024 patches, 64 tokens a frame) and processor at half its widths, with one of
twelve and two of 32 layers: a frame costs the vision half 5.2 times what it costs the language half (there 4.7)."""


def checkpoint(folder):
    """A random checkpoint in hub layout, with a real processor at 512 pixels."""
    import copy

    from dashvlm.backbones.tiny import twin_folder
    from dashvlm.backbones.twin_files import twin_of

    spec = copy.deepcopy(dict(twin_of({"twin": "smolvlm2"})))
    for part, values in PROPORTIONS["config"].items():
        if isinstance(values, dict):
            spec["config"][part] |= values
        else:
            spec["config"][part] = values
    spec["image_processor"] |= {"size": {"longest_edge": 512}, "max_image_size": {"longest_edge": 512}}
    spec["processor"] |= {"image_seq_len": 64}
    return twin_folder(spec, folder / "twins")


def nexar(folder, clips=30, seconds=32, fps=10):
    """Clips in the layout of the challenge, each its own group."""
    from dashvlm.data.synthetic.encode import write_video

    (folder / "train").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["id,time_of_event,time_of_alert,target"]
    for number in range(clips):
        wide = np.kron(rng.integers(0, 255, (30, 120, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        frames = (wide[:, (3 * i) % 400 : (3 * i) % 400 + 426] for i in range(seconds * fps))
        write_video(folder / "train" / f"{number:05d}.mp4", frames, [i / fps for i in range(seconds * fps)])
        event = f"{31 - 0.05 * number:.2f},{29 - 0.05 * number:.2f},1" if number % 2 else ",,0"
        lines.append(f"{number:05d},{event}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return folder


OURS = """
import json, logging, resource, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
root, model, out, grid, words = sys.argv[2], sys.argv[3], Path(sys.argv[4]), json.loads(sys.argv[5]), sys.argv[6:]
try:
    from dashvlm.engine.run import quiet_libraries, run
except ImportError:
    from dashvlm.run import quiet_libraries, run
from dashvlm.sweep import make_plan
import dashvlm
assert dashvlm.__file__.startswith(sys.argv[1]), dashvlm.__file__
quiet_libraries()
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.ERROR)

def spent():
    return sum(sum(resource.getrusage(w)[:2]) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

points = [{"num_frames": n, "frame_interval_s": dt} for n, dt in grid]
began, scores, parts = spent(), [], []
for point in points:
    cfg = make_plan([*words, f"data.root={root}", f"model.checkpoint={model}", f"paths.cache_dir={out}/cache",
                     f"paths.output_dir={out}", *(f"data.{k}={v}" for k, v in point.items())]).configs[0]
    cfg["sweep"]["grid"] = points
    folder = out / f"{point['num_frames']}-{point['frame_interval_s']}"
    folder.mkdir(parents=True)
    before = spent()
    run(cfg, folder)
    parts.append(spent() - before)
    import pandas as pd
    scores.append(pd.read_parquet(folder / "predictions.parquet")["score"].tolist())
print("RESULT" + json.dumps({"cpu_s": spent() - began, "scores": scores, "parts": parts}))
"""

STOCK = """
import json, random, resource, sys
from pathlib import Path
import decord, numpy as np, peft, torch, transformers
from PIL import Image
sys.path.insert(0, sys.argv[1])
root, model, plan = Path(sys.argv[2]), sys.argv[3], json.loads(Path(sys.argv[4]).read_text())
from dashvlm.backbones.processors import load_processor  # transformers' own where torchvision is installed

def spent():
    return sum(sum(resource.getrusage(w)[:2]) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

processor = load_processor(model)
yes, no = (processor.tokenizer(" " + w, add_special_tokens=False).input_ids[0] for w in ("Yes", "No"))

def batch_of(rows, answer):
    texts, images = [], []
    for path, times, label in rows:
        reader = decord.VideoReader(path, width=854, height=480)
        at = np.clip(np.round(np.array(times) * reader.get_avg_fps()).astype(int), 0, len(reader) - 1)
        images.append([Image.fromarray(f) for f in reader.get_batch(at).asnumpy()])
        content = [{"type": "image"} for _ in times] + [{"type": "text", "text": plan["question"]}]
        chat = [{"role": "user", "content": content}]
        if answer:
            chat.append({"role": "assistant", "content": [{"type": "text", "text": "Yes" if label else "No"}]})
        texts.append(processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=not answer))
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True,
                       padding_side="right" if answer else "left",
                       images_kwargs={"do_image_splitting": False})
    if answer:
        labels = torch.full_like(inputs["input_ids"], -100)
        for row, mask in enumerate(inputs["attention_mask"]):
            end = int(mask.sum())
            labels[row, end - 3 : end] = inputs["input_ids"][row, end - 3 : end]
        inputs["labels"] = labels
    return dict(inputs)

began = spent()
for number, frames in enumerate(plan["points"]):
    torch.manual_seed(0)
    net = transformers.AutoModelForImageTextToText.from_pretrained(model)
    layers = [n for n, m in net.named_modules() if ".text_model." in n and isinstance(m, torch.nn.Linear)]
    net = peft.get_peft_model(net, peft.LoraConfig(r=16, lora_alpha=32, target_modules=layers))
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=plan["lr"])
    rows = frames["train"]
    for epoch in range(plan["epochs"]):
        net.train()
        order = random.Random(epoch).sample(range(len(rows)), len(rows))
        for start in range(0, len(rows), plan["batch"]):
            loss = net(**batch_of([rows[i] for i in order[start : start + plan["batch"]]], True)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        net.eval()
        with torch.no_grad():
            for start in range(0, len(frames["val"]), 16):
                net(**batch_of(frames["val"][start : start + 16], True)).loss
    net.eval()
    with torch.no_grad():
        for part in frames["test"]:
            for start in range(0, len(part), 16):
                net.generate(**batch_of(part[start : start + 16], False), max_new_tokens=8, do_sample=False,
                             output_scores=True, return_dict_in_generate=True)
print("RESULT" + json.dumps({"cpu_s": spent() - began}))
"""


def _process(code, *args):
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False,
                          env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[-1].removeprefix("RESULT"))


WORDS = ["model=smolvlm2", "task=crash", "data=nexar", "trainer=cpu", f"trainer.max_epochs={EPOCHS}",
         f"data.batch_size={BATCH}", "data.num_workers=0", f"optim.lr={LR}", "peft.dropout=0", "data.reader=decord",
         "trainer.progress=false",
         "data.max_bad_fraction=0.5"]  # fmt: skip


def stock_plan(root):
    """What the stock loop looks at: the clips, splits and times of ours."""
    from dashvlm.engine.prepare import evaluation_samples, prepare_data
    from dashvlm.sweep import make_plan

    points = []
    for n, dt in GRID:
        cfg = make_plan([*WORDS, f"data.root={root}", f"data.num_frames={n}", f"data.frame_interval_s={dt}",
                         f"paths.cache_dir={root}/../plan", f"paths.output_dir={root}/../plan"]).configs[0]  # fmt: skip
        data = prepare_data(cfg)
        test = evaluation_samples(cfg, data)

        def rows(samples):
            return [(s.clip.path, list(s.times_s), s.clip.label) for s in samples]

        points.append({"train": rows(data.samples["train"]), "val": rows(data.samples["val"]),
                       "test": [rows([s for s in test if s.horizon_s == h]) for h in HORIZONS]})  # fmt: skip
    return {"points": points, "lr": LR, "epochs": EPOCHS, "batch": BATCH, "question": QUESTION}


def bench_sweep(folder, before=None, clips=8, both=True):
    """CPU of a 12-point sweep with three epochs: ours, an earlier checkout's, the stock loop's."""
    here, root, model = Path(__file__).resolve().parents[1], nexar(folder / "nexar", clips), checkpoint(folder)
    grid = json.dumps(GRID)
    mine = _process(OURS, here, root, model, folder / "ours", grid, *WORDS)
    off = ["data.features=off", "data.encoded=off"]
    each = _process(OURS, here, root, model, folder / "each", grid, *WORDS, *off) if both else None
    plan = folder / "plan.json"
    plan.write_text(json.dumps(stock_plan(root)))
    stock = _process(STOCK, here, root, model, plan)
    row = {
        "set": f"{clips} clips of 32 s, 12 points, {EPOCHS} epochs, three horizons, LoRA on the language half, fp32",
        "dashvlm_cpu_s": round(mine["cpu_s"], 1),
        "stock_loop_cpu_s": round(stock["cpu_s"], 1),
        "ratio_stock": round(stock["cpu_s"] / mine["cpu_s"], 2),
    }
    if each is not None:
        row |= {"nothing_kept_cpu_s": round(each["cpu_s"], 1),
                "ratio_nothing_kept": round(each["cpu_s"] / mine["cpu_s"], 2),
                "predictions_equal_to_nothing_kept": each["scores"] == mine["scores"]}  # fmt: skip
    if before is not None:
        old = _process(OURS, before, root, model, folder / "before", grid, *WORDS)
        gap = max(abs(a - b) for one, two in zip(mine["scores"], old["scores"], strict=True)
                  for a, b in zip(one, two, strict=True))  # fmt: skip
        row |= {"before_cpu_s": round(old["cpu_s"], 1), "ratio_before": round(old["cpu_s"] / mine["cpu_s"], 2),
                "largest_difference_to_before": gap}  # fmt: skip
    return row


def bench_path(folder, frames=40, repeats=5):
    """CPU of a frame from the loader to the network's inputs: encoded anew, kept pixels, kept features."""
    import torch

    torch.set_num_threads(1)  # as in a loader's worker

    from dashvlm.backbones.hf import load
    from dashvlm.data.encoded import EncodedStore
    from dashvlm.data.entries import Entries
    from dashvlm.data.frames import FrameStore
    from dashvlm.data.synthetic.encode import write_video
    from dashvlm.engine.fit import build_trainer
    from dashvlm.engine.kept import features_of
    from dashvlm.sweep import make_plan

    path, rng = folder / "path.mp4", np.random.default_rng(0)
    wide = np.kron(rng.integers(0, 255, (60, 120, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    write_video(path, (wide[:, 2 * i : 2 * i + 854] for i in range(frames)), [i / 2 for i in range(frames)])
    cfg = make_plan([*WORDS, f"paths.cache_dir={folder}/path", f"paths.output_dir={folder}"]).configs[0]
    trainer = build_trainer(cfg, logger=False, enable_checkpointing=False)
    size = {"do_image_splitting": False, "size": {"height": 512, "width": 512}, "max_image_size": {"longest_edge": 512}}
    backbone = load(str(checkpoint(folder)), size, cfg["model"]["roles"])
    encoder, times = backbone.encoder, [i / 2 for i in range(frames)]
    store = FrameStore(folder / "path_frames", size=(480, 854))
    pixels = EncodedStore(Entries(folder / "path_pixels", "pixels", 10), store, "bench")
    features = EncodedStore(Entries(folder / "path_features", "features", 10), store, "bench")
    shown, true = store.frames(path, times)
    kept = encoder.apart.encode(shown)
    pixels.put(path, true, kept)
    # Features of the published size: 64 tokens of 960 values in bfloat16; what is in them does not matter here.
    made = {n: a for n, a in kept.arrays.items() if not n.startswith("pixel")}
    made["features.image"] = rng.integers(0, 60000, (frames, 64, 960), dtype=np.uint16)
    features.put(path, true, type(kept)(made))
    del features_of, trainer
    chats = [[{"role": "user", "content": [*({"type": "image"} for _ in range(5)), {"type": "text", "text": "?"}]}]]
    picks = [times[i : i + 5] for i in range(0, frames, 5)]

    def anew():
        return [encoder.encode(chats, [store.frames(path, p)[0]])["pixel_values"] for p in picks]

    def of(kind, ready):
        found = []
        for p in picks:
            batch = encoder.encode(chats, [kind.get(path, p)[0]])
            found.append(backbone.ready(batch).get("pixel_values") if ready else batch)
        return found

    def cpu(work):
        began = time.process_time()
        work()
        return 1000 * (time.process_time() - began) / frames

    equal = all(torch.equal(a, b) for a, b in zip(anew(), of(pixels, True), strict=True))
    rows = [(cpu(anew), cpu(lambda: of(pixels, False)), cpu(lambda: of(pixels, True)), cpu(lambda: of(features, False)))
            for _ in range(repeats)]  # fmt: skip
    torch.set_num_threads(os.cpu_count() or 1)
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    return {
        "set": "480x854 frames from the store, SmolVLM2's processor at 512 pixels, prompts of 5 frames, ms a frame",
        "encoded_anew_ms": round(medians[0], 2),
        "kept_pixels_ms": round(medians[1], 2),
        "kept_pixels_normalised_on_cpu_ms": round(medians[2], 2),
        "kept_features_ms": round(medians[3], 2),
        "ratio_pixels": round(statistics.median(a / b for a, b, _, _ in rows), 1),
        "ratio_features": round(statistics.median(a / d for a, _, _, d in rows), 1),
        "bit_equal": equal,
    }


def bench_questions(folder, repeats=5):
    """Training and scoring of 2.71 questions a clip: a prefix a clip against a pass a question."""
    import torch

    from dashvlm.backbones.hf import load
    from dashvlm.sweep import make_plan

    cfg = make_plan([*WORDS, f"paths.cache_dir={folder}/path", f"paths.output_dir={folder}"]).configs[0]
    size = {"do_image_splitting": False, "size": {"height": 512, "width": 512}}
    backbone = load(str(checkpoint(folder)), size, cfg["model"]["roles"]).train()
    for name, parameter in backbone.named_parameters():  # as adapters: everything of the language half learns
        parameter.requires_grad_("text_model" in name)
    rng, clips, per_clip = np.random.default_rng(0), 7, (3, 3, 3, 3, 3, 2, 2)  # 19 questions: 2.71 a clip
    frames = [backbone.encoder.apart.encode(rng.integers(0, 256, (16, 240, 427, 3), dtype=np.uint8))
              for _ in range(clips)]  # fmt: skip
    clip_of = [c for c, n in enumerate(per_clip) for _ in range(n)]
    question = "What does the sign ahead of the {} car say? A. Stop B. Give way C. No entry D. Nothing. One letter."
    chats = [[{"role": "user", "content": [*({"type": "image"} for _ in range(16)),
                                           {"type": "text", "text": question.format(i)}]}]
             for i in range(len(clip_of))]  # fmt: skip
    answers, rows = ["ABCD"[i % 4] for i in range(len(clip_of))], [frames[c] for c in clip_of]
    encoder = backbone.encoder

    def batch(shared, answered):
        said = answers if answered else None
        made = encoder.encode_shared(chats, frames, clip_of, said) if shared else encoder.encode(chats, rows, said)
        return backbone.ready(made)

    def train(shared):
        backbone.zero_grad()
        loss = backbone.loss(batch(shared, True))
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}

    @torch.no_grad()
    def score(shared):
        return backbone.score(batch(shared, False), list("ABCD"))

    def cpu(work, shared):
        began = time.process_time()
        work(shared)
        return time.process_time() - began

    one, two = train(True), train(False)
    whole = batch(True, False)
    length = whole["attention_mask"].sum(1).float()
    steps = [(cpu(train, False), cpu(train, True), cpu(score, False), cpu(score, True)) for _ in range(repeats)]
    return {
        "set": f"{len(clip_of)} questions on {clips} clips of 16 frames, vision and language as at 500M, fp32, CPU",
        "share_of_tokens_in_prefix": round(float((whole["prefix"][whole["clip_of"]] / length).mean()), 3),
        "training_ratio": round(statistics.median(a / b for a, b, _, _ in steps), 2),
        "scoring_ratio": round(statistics.median(c / d for _, _, c, d in steps), 2),
        "largest_difference_of_scores": float((score(True) - score(False)).abs().max()),
        "largest_difference_of_gradients": max(float((one[1][n] - g).abs().max()) for n, g in two[1].items()),
        "difference_of_losses": float((one[0] - two[0]).abs()),
    }


GROWTH = """
import json, resource, sys, time
import numpy as np, pandas as pd
sys.path.insert(0, sys.argv[1])
from dashvlm.data.clip import Clip, Sample
from dashvlm.data.samples import balanced_part, with_demos
from dashvlm.tasks.evaluation import evaluate, evaluations
n = int(sys.argv[2])
rng = np.random.default_rng(0)
y = rng.integers(0, 2, n)
s = np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1)
table = pd.DataFrame({
    "sample_id": [f"c{i}@0.5" for i in range(n)], "clip_id": [f"c{i}" for i in range(n)],
    "group": [f"g{i // 2}" for i in range(n)], "split": "test", "path": "x.mp4", "horizon_s": 0.5, "num_padded": 0,
    "problem": None, "primary": True, "target": pd.array(y, dtype="Int64"), "scores": [[1 - v, v] for v in s],
    "score": s, "text": "Yes", "answer": pd.array([1] * n, dtype="Int64"), "status": "parsed", "latency_s": 0.1,
    "pixels_off_score": 0.5, "stale_s": 0.0})
samples = [Sample(f"c{i}@0.5", Clip(f"c{i}", f"{i}.mp4", f"g{i // 2}", "train", int(y[i]), None, None, 40.0, 30.0),
                  0.5, 30.0, (29.5,), 0) for i in range(n)]
found = {}
for name, work in {"evaluation, 1,000 resamples": lambda: evaluate(table, evaluations()["binary"], 0),
                   "demonstrations": lambda: with_demos(samples, samples, 1.0, 4, 8),
                   "part of the validation split": lambda: balanced_part(samples, n // 2)}.items():
    began = time.process_time()
    work()
    found[name] = time.process_time() - began
found["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print("RESULT" + json.dumps(found))
"""
ROWS = (100, 1_500, 20_000, 100_000)


def bench_growth(folder):
    """CPU seconds of what looks at all rows, and the exponent between the two largest sizes."""
    here = Path(__file__).resolve().parents[1]
    found = [_process(GROWTH, here, n) for n in ROWS]
    row = {"rows": list(ROWS)}
    for name in found[0]:
        values = [f[name] for f in found]
        row[name] = [round(v, 2) for v in values]
        if name != "memory_gb":
            steps = np.log(max(values[3], 1e-3) / max(values[2], 1e-3)) / np.log(ROWS[3] / ROWS[2])
            row[f"{name}: exponent"] = round(float(steps), 2)
    return row
