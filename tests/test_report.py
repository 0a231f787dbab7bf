import json

import pandas as pd
import yaml

from dashvlm.report.collect import axes_of, collect
from dashvlm.report.sweep_plot import plot_sweep
from dashvlm.report.tables import notes_of, sweep_rows, to_markdown


def make_run(folder, value, **config):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    estimate = {"value": value, "low": value - 0.05, "high": value + 0.05}
    content = {
        "run_id": folder.name,
        "status": "done",
        "metrics": {"roc_auc": estimate},
        "baselines": {},
        "alarms": ["odd"],
    }
    (folder / "result.json").write_text(json.dumps(content))


def test_a_swept_group_is_an_axis_by_its_name_and_another_by_what_differs(tmp_path):
    for number, (model, rank) in enumerate([("a", 4), ("a", 8), ("b", 4), ("b", 8)]):
        make_run(
            tmp_path / f"r{number}", 0.6 + number / 10, model={"name": model}, peft={"rank": rank, "method": "lora"}
        )
    table = collect(sorted(tmp_path.iterdir()))
    assert axes_of(table, ["model", "peft"]) == ["model.name", "peft.rank"]
    assert axes_of(table) == ["model.name", "peft.rank"]
    header, body = sweep_rows(table, ["model.name", "peft.rank"])
    assert header[:3] == ["model", "rank", "run"]
    assert body[0][3] == "0.600 [0.55,0.65]"
    assert plot_sweep(table, ["model.name", "peft.rank"], tmp_path / "h.png").stat().st_size > 5000
    assert notes_of(table) == ["odd (4 runs)"]
    assert to_markdown(header, body).count("\n") == 6


def test_failed_and_broken_runs_stay_in_the_table(tmp_path):
    make_run(tmp_path / "a", 0.7, seed=1)
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 2\n")
    (tmp_path / "b" / "failed.json").write_text(json.dumps({"status": "failed", "error": "X", "message": "why\nmore"}))
    table = collect([tmp_path / n for n in "abc"])
    assert table["status"].tolist() == ["done", "failed", "broken"]
    _, body = sweep_rows(table, ["seed"])
    assert body[1][-1] == "failed: why"
    assert pd.isna(table["roc_auc"][1])


def test_line_plot_over_one_axis(tmp_path):
    for n in (5, 10, 15):
        make_run(tmp_path / f"n{n}", 0.5 + n / 50, data={"num_frames": n})
    table = collect(sorted(p for p in tmp_path.iterdir()))
    assert plot_sweep(table, ["data.num_frames"], tmp_path / "l.png").stat().st_size > 5000
    assert plot_sweep(table, [], tmp_path / "none.png") is None


def test_seeds_are_no_axis_of_a_plot(tmp_path, monkeypatch):
    from dashvlm.report import sweep_plot

    for n in (5, 10):
        for seed in (1, 2, 3):
            make_run(tmp_path / f"n{n}s{seed}", n / 20 + seed / 100, data={"num_frames": n}, seed=seed)
    table = collect(sorted(p for p in tmp_path.iterdir()))
    drawn = []
    monkeypatch.setattr(sweep_plot, "_line", lambda done, names, metric, what, *_: drawn.append((done, names, what)))
    monkeypatch.setattr(sweep_plot, "save", lambda figure, path: path)
    plot_sweep(table, ["data.num_frames", "seed"], tmp_path / "l.png")
    ((done, names, what),) = drawn
    assert names == ["data.num_frames"]
    assert sorted(done["roc_auc"].round(6)) == [0.27, 0.52]
    assert "mean of seeds" in what
