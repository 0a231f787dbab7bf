"""Everything in the package that may execute, start, deserialise or write, each with its reason; nothing else does."""

import ast

from tests.conftest import ROOT

NAMES = {"eval", "exec", "compile", "__import__", "save_file"}
MODULES = {"pickle", "subprocess", "yaml", "runpy", "marshal", "shelve", "ctypes", "code", "pty"}
CALLS = {
    "torch.load", "torch.save", "torch.hub.load", "importlib.import_module", "os.system", "os.popen", "os.execv",
    "os.execve", "os.spawnv", "os.kill", "os.replace", "os.rename", "os.remove", "os.unlink", "os.symlink", "os.umask",
    "shutil.rmtree", "shutil.copy", "shutil.copyfile", "shutil.copytree", "shutil.move", "json.dump", "np.save",
    "numpy.save", "jinja2.Environment", "jinja2.Template", "getattr(transformers)",
}  # fmt: skip
METHODS = {
    "write_text", "write_bytes", "to_csv", "to_parquet", "to_json", "savefig", "save_file", "save_pretrained",
    "from_string", "unlink", "rename", "replace(path)", "symlink_to", "save",
}  # fmt: skip

REASONS = {
    "passes False, so that a checkpoint's own code is never run": [
        ("backbones/footprint.py", "trust_remote_code=False"), ("backbones/hf.py", "trust_remote_code=False"),
        ("backbones/openflamingo/processing.py", "trust_remote_code=False"), ("export.py", "trust_remote_code=False"),
        ("backbones/processors.py", "trust_remote_code=False"), ("backbones/tiny.py", "trust_remote_code=False"),
        ("metrics/clip.py", "trust_remote_code=False"), ("backbones/vision.py", "trust_remote_code=False"),
    ],
    "weights_only=True, after the seal was compared": [("training/checkpoints.py", "torch.load")],
    "weights_only=True: the released OpenFlamingo weights are a .pt file": [
        ("backbones/openflamingo/convert.py", "torch.load")
    ],
    "between this process and one that it has started itself": [
        ("data/guard.py", "pickle.dumps"), ("data/guard.py", "pickle.loads"), ("data/guard.py", "subprocess.Popen"),
        ("data/guard.py", "importlib.import_module"),
    ],
    "imports modules of this package only, below the package of the kind": [("config/imports.py",
    "importlib.import_module")],
    "runs the verb that was typed, one of a fixed list": [("__main__.py", "runpy.run_module")],
    "imports the packages below dashvlm.tasks": [("tasks/evaluation.py", "importlib.import_module")],
    "imports a reader of a fixed list": [("data/readers.py", "importlib.import_module")],
    "looks a class up and checks that it is a model, configuration or processor": [
        ("backbones/tiny.py", "getattr(transformers)"),
    ],
    "reads model_type of a class that model.twin names": [("engine/build.py", "getattr(transformers)")],
    "one of the two Auto classes that our backbones name": [("export.py", "getattr(transformers)")],
    "looks a processor's class up by the names that transformers gives": [
        ("backbones/processors.py", "getattr(transformers)")
    ],
    "starts Java on jars of the caption metrics, with files of its own": [
        ("metrics/java.py", "subprocess.run"), ("metrics/java.py", "write_text"),
    ],
    "asks git for this package's commit": [("engine/results.py", "subprocess.run")],
    "starts dashvlm.engine.job on a run's folder": [("sweep.py", "subprocess.Popen")],
    "asks the kernel to end a process with its parent": [
        ("safety/signals.py", "ctypes.CDLL(None).prctl"), ("safety/signals.py", "ctypes.CDLL"),
        ("safety/signals.py", "os.kill"),
    ],
    "safe_load and safe_dump within bounds": [
        ("safety/files.py", "yaml.load"),
        ("safety/files.py", "yaml.constructor.ConstructorError"),
        ("safety/files.py", "yaml.safe_dump"), ("training/loggers.py", "yaml.safe_dump"),
    ],
    "a template of this package, or of the user, in a sandbox": [
        ("labels/ask.py", "from_string"), ("report/html.py", "from_string"),
        ("report/html.py", "jinja2.Environment"), ("tasks/base.py", "from_string"),
        ("report/risk_page.py", "from_string"), ("report/risk_page.py", "jinja2.Environment"),
    ],
    "permissions of what is made": [("config/overrides.py", "os.umask")],
    "renames columns of a table, no file": [("safety/plaintext.py", "rename"), ("engine/scoring.py", "rename")],
    "a twin or a processor below paths.cache_dir or export's folder": [
        ("backbones/openflamingo/processing.py", "save_pretrained"),
        ("backbones/openflamingo/processing.py", "write_text"), ("backbones/processors.py", "save_pretrained"),
        ("backbones/processors.py", "write_text"), ("backbones/tiny.py", "save_pretrained"),
        ("backbones/tiny.py", "open w"), ("backbones/tiny.py", "shutil.rmtree"), ("backbones/tiny.py", "rename"),
        ("backbones/tiny.py", "write_text"),
    ],
    "the frame store, the teacher's answers and the synthetic world below paths.cache_dir": [
        ("data/entries.py", "open"), ("data/entries.py", "unlink"), ("data/entries.py", "os.replace"),
        ("data/entries.py", "open xb"), ("data/formats/synthetic.py", "write_text"),
        ("data/formats/synthetic.py", "replace(path)"), ("data/formats/synthetic.py", "open w"),
        ("data/synthetic/encode.py", "replace(path)"), ("data/synthetic/encode.py", "write_bytes"),
        ("data/synthetic/encode.py", "open w"), ("data/synthetic/street.py", "save"), ("endpoint/client.py", "unlink"),
        ("endpoint/client.py", "replace(path)"), ("endpoint/client.py", "open a"), ("endpoint/exchange.py",
        "replace(path)"),
        ("endpoint/exchange.py", "open w"),
    ],
    "a JPEG into memory": [("endpoint/exchange.py", "save"), ("engine/gallery.py", "save")],
    "a verb's own folder below paths.output_dir, or the output it was given": [
        ("shortcuts/card.py", "savefig"), ("data/formats/bvpi_build.py", "write_text"), ("data/manifest.py", "to_csv"),
        ("data/formats/jsonl.py", "write_text"), ("data/manifest.py", "write_text"), ("export.py", "shutil.rmtree"),
        ("export.py", "rename"), ("export.py", "write_text"), ("export.py", "save_pretrained"),
        ("export.py", "shutil.copyfile"), ("export.py", "save_file"), ("inspect.py", "write_text"),
        ("label.py", "write_text"), ("label.py", "open w"), ("labels/ask.py", "open a"), ("predict.py", "to_csv"),
        ("predict.py", "open w"), ("engine/over_time.py", "shutil.copyfile"), ("report/risk_page.py", "write_text"),
        ("predict.py", "unlink"),
        ("labels/ask.py", "write_bytes"), ("engine/own_mistakes.py", "write_text"), ("report/__main__.py", "to_csv"),
        ("report/__main__.py", "write_text"), ("report/html.py", "write_text"), ("report/html.py", "savefig"),
        ("figures.py", "savefig"), ("reproductions/study_report.py", "write_text"),
        ("reproductions/study_report.py", "write_bytes"), ("report/wandb_runs.py", "write_text"),
        ("report/wandb_runs.py", "os.replace"), ("score.py", "to_parquet"), ("score.py", "write_text"),
        ("sweep.py", "to_csv"), ("sweep.py", "write_text"), ("sweep.py", "open a"),
        ("engine/chats.py", "write_text"), ("engine/chats.py", "save"), ("engine/similarities.py", "open w"),
    ],
    "pictures of a Parquet file, unpacked beside it below data.root": [
        ("data/formats/bdd100k.py", "replace(path)"), ("data/formats/bdd100k.py", "write_bytes"),
    ],
    "a study's own folder, on freeze=true": [("reproductions/studies.py", "write_text")],
    "a dashboard on the user's own W&B account, when asked for": [("reproductions/workspace.py", "save")],
    "jars of SPICE, compared with their checksums": [
        ("metrics/fetch_spice.py", "replace(path)"), ("metrics/fetch_spice.py", "open wb"),
        ("metrics/fetch_spice.py", "unlink"), ("metrics/fetch_spice.py", "shutil.copyfile"),
    ],
    "a run's own folder": [
        ("engine/job.py", "unlink"), ("engine/job.py", "open a+"), ("safety/files.py", "write_text"),
        ("safety/files.py", "replace(path)"),
        ("safety/files.py", "unlink"),
        ("engine/run.py", "replace(path)"), ("engine/run.py", "to_parquet"), ("engine/run.py", "save_pretrained"),
        ("engine/run.py", "save_file"),
        ("engine/results.py", "to_parquet"), ("engine/results.py", "to_csv"), ("training/callbacks.py", "unlink"),
        ("sweep.py", "unlink"), ("tasks/crash/__init__.py", "to_csv"),
        ("tasks/mcq/__init__.py", "to_csv"),
        ("training/callbacks.py", "write_text"), ("training/checkpoints.py", "replace(path)"),
        ("training/checkpoints.py", "unlink"), ("training/checkpoints.py", "open"),
        ("training/checkpoints.py", "open w+b"), ("training/checkpoints.py", "torch.save"),
        ("training/loggers.py", "rename"), ("training/loggers.py", "write_text"),
        ("training/loggers.py", "shutil.copyfile"), ("training/loggers.py", "save"),
    ],
}  # fmt: skip
ALLOWED = {entry: reason for reason, entries in REASONS.items() for entry in entries}


def uses(path):
    """(what, line) of every use in a file that needs a reason."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            last = name.rsplit(".", 1)[-1]
            words = {k.arg: ast.unparse(k.value) for k in node.keywords}
            said = [ast.unparse(a) for a in node.args]
            if name in NAMES or name in CALLS:
                found.append(name)
            elif name == "getattr" and said and said[0] == "transformers":
                found.append("getattr(transformers)")
            elif "." in name and name.split(".")[0] in MODULES:
                found.append(name)
            elif last in METHODS and "." in name:
                found.append(last)
            elif last == "replace" and "." in name and len(said) == 1 and not words:
                found.append("replace(path)")
            elif last == "open":
                place = 1 if name in ("open", "av.open") else 0  # path.open(mode)
                mode = (words.get("mode") or "".join(said[place : place + 1])).strip("'")
                if name == "os.open" or (len(mode) < 5 and set(mode) & set("wax+")):
                    found.append("open" if name == "os.open" else f"open {mode}")
            if "trust_remote_code" in words:
                found.append(f"trust_remote_code={words['trust_remote_code']}")
    return found


def test_every_use_is_on_the_list_and_every_entry_is_used():
    seen = {}
    for path in sorted((ROOT / "dashvlm").rglob("*.py")):
        for what in uses(path):
            seen.setdefault((path.relative_to(ROOT / "dashvlm").as_posix(), what), 0)
    unknown = sorted(set(seen) - set(ALLOWED))
    gone = sorted(set(ALLOWED) - set(seen))
    assert not unknown, f"give a reason for each in ALLOWED, or do without: {unknown}"
    assert not gone, f"no longer there: {gone}"
    assert all(len(reason) > 10 for reason in ALLOWED.values())


def test_no_use_escapes_the_test(tmp_path):
    """The test sees what it is for, however it is written."""
    path = tmp_path / "a.py"
    path.write_text(
        "import torch, pickle, subprocess, os\ntorch.load('x')\npickle.loads(b'')\nsubprocess.run(['x'])\neval('1')\n"
        "open('a', 'w')\nopen('a', mode='wb')\nPath('a').open('ab')\nPath('a').write_text('')\nt.to_csv('a')\n"
        "AutoModel.from_pretrained('x', trust_remote_code=True)\nos.system('x')\np.replace(q)\nyaml.load('')\n"
    )
    assert uses(path) == [
        "torch.load", "pickle.loads", "subprocess.run", "eval", "open w", "open wb", "open ab", "write_text", "to_csv",
        "trust_remote_code=True", "os.system", "replace(path)", "yaml.load",
    ]  # fmt: skip
