"""Canary secrets in every place a user may put one: refused without being repeated, and in no file afterwards."""

import json
import os
import stat
import subprocess
import sys

import pytest

from dashvlm.safety.redaction import HIDDEN, clean, problems, redact
from tests.conftest import ROOT, SMALL, Trials

CANARY = "canary7f3a9c2e5b1d"
TOKEN = f"hf_{CANARY}AbCdEfGhIjKlMnOpQr"
WORDS = {
    "new key": [f"+logger.api_key={CANARY}"],
    "nested key": [f"+model.loader_options.auth.token={CANARY}"],
    "dictionary": [f"+model.loader_options={{token: {CANARY}}}"],
    "deep dictionary": [f"+data.options.x={{a: {{b: {{password: {CANARY}}}}}}}"],
    "list of dictionaries": [f"+data.options.x=[{{secret: {CANARY}}}]"],
    "quoted dictionary": [f"+data.options.x={{'api_key': '{CANARY}'}}"],
    "url user": [f"data.root=https://me:{CANARY}@host/data"],
    "url user without password": [f"data.root=https://{TOKEN}@host/data"],
    "git address": [f"model.checkpoint=git+https://{TOKEN}@host/x"],
    "header": [f"+model.loader_options.headers={{Authorization: Bearer {CANARY}}}"],
    "bearer as a value": [f"+logger.note='Bearer {CANARY}'"],
    "token as a value": [f"logger.project={TOKEN}"],
    "tags": [f"logger.tags=[{TOKEN}]"],
    "start_from": [f'start_from=["+logger.api_key={CANARY}","trainer.max_steps=1"]'],
    "environment": ["+logger.note=${oc.env:MY_API_KEY}"],
    "environment inside a text": ["logger.project=a-${oc.env:MY_API_KEY}-b"],
    "environment of a usual name": ["logger.project=${oc.env:HF_TOKEN}"],
    "several values": [f"+logger.api_key={CANARY},b", "-m"],
    "password": [f"+data.options.passwd={CANARY}"],
    "cookie": [f"+data.options.cookie={CANARY}"],
    "private key": [f"+data.options.private_key={CANARY}"],
    "camel case": [f"+data.options.openaiApiKey={CANARY}"],
    "a number": ["+data.options.api_key=7316492"],
    "query": [f"data.root='https://host/x?api_key={CANARY}'"],
    "session token": [f"+data.options.session_token={CANARY}"],
    "numbered": [f"+data.options.api_key_1={CANARY}"],
    "a key of a dictionary": [f"+data.options.x={{{TOKEN}: 1}}"],
    "credentials": [f"+data.options.credentials={CANARY}"],
}
ENVIRONMENT = {"MY_API_KEY": f"{CANARY}-of-mine", "HF_TOKEN": TOKEN, "WANDB_API_KEY": f"{CANARY}{CANARY}{CANARY}"[:40]}


def found_in(folder):
    """Files below a folder in which the canary is, in its name or its bytes."""
    return [p for p in folder.rglob("*") if CANARY in p.name or (p.is_file() and CANARY.encode() in p.read_bytes())]


def test_a_secret_in_a_configuration_is_refused_and_not_repeated(dashvlm, tmp_path, cache):
    with Trials("secrets: words") as trials:
        for name, words in WORDS.items():
            done = dashvlm("train", *SMALL, *words, check=False, env=ENVIRONMENT)
            said = done.stdout + done.stderr
            trials.check(done.returncode == 2 and CANARY not in said and not found_in(tmp_path), (name, said[-400:]))
    assert trials.tried >= 20


@pytest.mark.parametrize(
    ("verb", "words"),
    [("evaluate", ["model=smolvlm2"]), ("inspect", ["data=synthetic"]), ("report", []),
     ("score", ["predictions=x.csv"]), ("label", ["data=synthetic"]), ("predict", ["run=x"]), ("export", ["run=x"])],
)  # fmt: skip
def test_every_verb_refuses_secrets(dashvlm, tmp_path, verb, words):
    for secret in (f"+api_key={CANARY}", "+note=${oc.env:MY_API_KEY}"):
        done = dashvlm(verb, *words, secret, check=False, env=ENVIRONMENT)
        assert done.returncode == 2, done.stderr
        assert "holds a secret" in done.stderr
        assert CANARY not in done.stdout + done.stderr
    assert not found_in(tmp_path)


def test_what_is_no_secret_is_left_alone():
    plain = {"image_token_id": 3, "pad_token": "<pad>", "eos_token": "x", "max_tokens": 16, "key": "a", "author": "b",
             "root": "/data/a@b", "url": "https://host/path@x", "tokenizer": {"special": ["<image>"]},
             "overrides": ["data.options.num_drives=4", "start_from=[a=b]"]}  # fmt: skip
    plain |= {"repository": "git+ssh://git@github.com/a/b", "server": "ssh://user@host/x",
              "names": ["s3://bucket12345678@eu/x", "sk-learn-based-model-name-long", "/data/sk-long-name-12345",
                        "sk-SK-slovak-dataset-2024", "hf_SmolVLM2Instruct256M", "http://somelongusername12@host/x",
                        "Bearer documents", "https://medium.com/@user/post", "https://cdn/@scope/pkg@1.2.3/file"],
              "words": ["task.question='Is the token: visible?'", "data.root=/home/me@work/x"]}  # fmt: skip
    assert problems(plain) == []
    assert redact(plain) == plain


def test_variables_that_are_no_secrets_are_left_alone(monkeypatch):
    odd = {"TOKENIZERS_PARALLELISM": "disabled1", "KEYBOARD_LAYOUT": "synthetic9", "OLDPWD": "/x/gone1",
           "LESSKEY": "synthetic9", "MY_KEY": "synthetic", "SHORT_TOKEN": "abc12", "KEY_FILE": __file__}  # fmt: skip
    for name, value in odd.items():
        monkeypatch.setenv(name, value)
        assert problems({"data": {"name": value}}) == [], name
        assert clean(f"data {value}") == f"data {value}"
    monkeypatch.setenv("MY_KEY", "synthetic9")
    assert problems({"data": {"name": "synthetic9"}})
    assert problems({"data": {"root": "clips/synthetic9"}}) == []
    assert clean("a-synthetic9-b") == f"a-{HIDDEN}-b"
    monkeypatch.setenv("MY_KEY", "synthetic9synthetic9")
    assert problems({"data": {"root": "clips/synthetic9synthetic9"}})
    assert problems("hydra.run.dir=/tmp/x-${oc.env:HF_TOKEN}")


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{CANARY}@host/v1",
        f"Authorization: Bearer {CANARY}",
        TOKEN,
        f"sk-{CANARY}{CANARY}",
        f"login failed api_key={CANARY}, again",
        f"{{'password': '{CANARY}'}}",
        f"https://h/?token={CANARY}&x=1",
    ],
)
def test_messages_are_cleaned(text):
    assert CANARY not in clean(f"error at {text} today")
    assert HIDDEN in clean(text)


@pytest.mark.long
def test_the_environment_reaches_no_file_of_a_run_nor_wandb(cache, tmp_path):
    """A whole run with W&B, and one that fails with the secret in its message: in a process, as a user has them."""
    script = (
        "import sys, runpy, os\n"
        "import dashvlm.engine.scoring as s\n"
        "def fail(*a, **k): raise RuntimeError('HTTP 401 with ' + os.environ['HF_TOKEN'] + ' at https://a:' + "
        "os.environ['MY_API_KEY'] + '@host')\n"
        "if os.environ.get('FAIL'): s.score = fail; import dashvlm.engine.run; dashvlm.engine.run.score = fail\n"
        "from pathlib import Path\n"
        "from dashvlm.engine.job import main\n"
        "sys.exit(main(Path(sys.argv[1])))\n"
    )
    place = [f"paths.output_dir={tmp_path / 'runs'}", f"paths.cache_dir={cache}"]
    words = [*SMALL, "trainer.max_steps=1", "objective.generate=false", "logger=wandb", "logger.mode=offline", *place]
    environment = {**os.environ, **ENVIRONMENT, "WANDB_MODE": "offline"}
    done = subprocess.run([sys.executable, "-m", "dashvlm.train", *words], cwd=ROOT, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    with Trials("secrets: files of runs") as trials:
        trials.check(CANARY not in done.stdout + done.stderr)
        trials.check(not found_in(tmp_path), found_in(tmp_path)[:3])
        (folder,) = (tmp_path / "runs").glob("crash-*")
        (folder / "result.json").unlink()
        failed = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, env={**environment, "FAIL": "1"},
                                capture_output=True, text=True, check=False)  # fmt: skip
        trials.check(failed.returncode == 1, failed.stderr[-500:])
        trials.check(CANARY not in failed.stdout + failed.stderr, failed.stderr[-500:])
        trials.check("HTTP 401" in (folder / "failed.json").read_text())
        trials.check(not found_in(tmp_path), found_in(tmp_path)[:3])


def test_folders_are_private_unless_shared(dashvlm, tmp_path):
    before = os.umask(0o022)
    try:
        for word, others in ((None, 0o077), ("paths.shared=true", 0o007)):
            output, cache = tmp_path / str(word), tmp_path / f"{word}-cache"
            dashvlm("train", *SMALL, "trainer.max_steps=0", "objective.generate=false", f"paths.output_dir={output}",
                    f"paths.cache_dir={cache}", *([word] if word else []), last=True)  # fmt: skip
            made = [p for place in (output, cache) for p in (place, *place.rglob("*"))]
            assert len(made) > 30
            modes = {p: stat.S_IMODE(p.stat().st_mode) for p in made if not p.is_symlink()}
            assert not {str(p): oct(m) for p, m in modes.items() if m & others}
    finally:
        os.umask(before)


def test_failed_json_names_the_error_without_the_secret(monkeypatch):
    from dashvlm.engine.job import _failure

    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    assert CANARY not in json.dumps(_failure(RuntimeError(f"bad key {CANARY}")))
