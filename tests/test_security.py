"""Nothing untrusted is executed, nothing secret is written down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_mixers", "megatron_synE", "tools", "examples")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALLOWED = {
    # A subclass of yaml.SafeLoader that also refuses duplicate keys.
    ("megatron_synE/config/load.py", "yaml.load"),
}
FORBIDDEN_CALLS = {
    "eval", "exec", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "dill.load", "dill.loads", "pandas.read_pickle",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput",
    "subprocess.getstatusoutput",
}  # fmt: skip


def dotted(node: ast.expr) -> str:
    """os.system for the call os.system(...); empty for anything that is not a plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is type(value) and node.value == value


def faults(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, what) of everything that would execute what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}" in ("os", "pickle", "subprocess", "yaml"):
            found += [(node.lineno, f"{node.module}.{name.name}") for name in node.names
                      if f"{node.module}.{name.name}" in FORBIDDEN_CALLS]  # fmt: skip
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        is_nothing = name == "exec" and len(node.args) == 1 and is_constant(node.args[0], "")
        if name in FORBIDDEN_CALLS and not is_nothing:
            found.append((node.lineno, name))
        if name.endswith("torch.load") and not is_constant(keywords.get("weights_only"), True):
            found.append((node.lineno, "torch.load"))
        if "shell" in keywords and not is_constant(keywords["shell"], False):
            found.append((node.lineno, "shell"))
        if "trust_remote_code" in keywords and not is_constant(keywords["trust_remote_code"], False):
            found.append((node.lineno, "trust_remote_code"))
        if "allow_pickle" in keywords and not is_constant(keywords["allow_pickle"], False):
            found.append((node.lineno, "allow_pickle"))
    return found


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES])
def test_nothing_executes_what_it_reads(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = faults(ast.parse(path.read_text(encoding="utf-8")))
    assert [(line, what) for line, what in found if (name, what) not in ALLOWED] == []


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code"),
        ("AutoModel.from_pretrained(x, trust_remote_code=config.trust)", "trust_remote_code"),
        ("exec(x)", "exec"),
        ('exec("import this")', "exec"),
        ("torch.load(x)", "torch.load"),
        ("torch.load(x, weights_only=False)", "torch.load"),
        ("pickle.loads(x)", "pickle.loads"),
        ("from pickle import loads", "pickle.loads"),
        ("eval(x)", "eval"),
        ("subprocess.run(x, shell=True)", "shell"),
        ("os.system(x)", "os.system"),
        ("yaml.load(x, Loader=yaml.Loader)", "yaml.load"),
        ("numpy.load(x, allow_pickle=True)", "allow_pickle"),
    ],
)
def test_the_finder_finds(code: str, what: str) -> None:
    assert [found for _, found in faults(ast.parse(code))] == [what]


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "torch.load(x, weights_only=True)",
        "subprocess.run([x])",
        "yaml.safe_load(x)",
        "re.compile(x)",
        'exec("")',
    ],
)
def test_the_finder_lets_the_harmless_pass(code: str) -> None:
    assert faults(ast.parse(code)) == []


def test_the_yaml_loader_of_the_configuration_is_a_safe_one(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    (tmp_path / "run.yaml").write_text(f"run: !!python/object/apply:os.system ['touch {witness}']\n")
    done = tiny.syne("train", "--config", tmp_path / "run.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    done = tiny.syne(
        "plan", "--config", tmp_path / "run.yaml", f"run.name=!!python/object/apply:os.system ['touch {witness}']"
    )
    assert done.returncode == 2
    assert not witness.exists()


def test_configuration_values_reach_no_shell(tmp_path: Path) -> None:
    config = tiny.prepared(tmp_path, validation={"manifests": []})
    run = tmp_path / "a $(touch witness) `touch witness`; touch witness"
    tiny.train(config, f"run.dir={run}", "training.stop_after_iterations=1", code=75)
    assert (run / "checkpoints/iter_0000001").is_dir()
    assert not list(tmp_path.rglob("witness")) and not (ROOT / "witness").exists()


SECRETS = {
    "WANDB_API_KEY": "1f2e3d4c5b6a79881f2e3d4c5b6a79881f2e3d4c",
    "HF_TOKEN": "hf_notarealtokenbutlookslikeone",
    "HUGGING_FACE_HUB_TOKEN": "hf_anotherthatisnotreal",
    "HF_HUB_PROXY_URL": "https://user:hunter2hunter2@proxy.example",
    "SLURM_JWT": "eyJhbGciOiJIUzI1NiJ9.notreal.notreal",
    "AWS_SECRET_ACCESS_KEY": "AKIAnotrealnotreal",
}


def test_no_secret_of_the_environment_is_written_into_the_run_folder(tmp_path: Path) -> None:
    config = tiny.prepared(tmp_path, logging={"tensorboard": True}, checkpoint={"export_hf": True})
    done = subprocess.run(
        [sys.executable, "-m", "tools", "train", "--config", str(config), "--nproc", "1", "data.stages.0.tokens=256",
         "lr_schedule.warmup_tokens=0", "lr_schedule.decay_tokens=0"],
        cwd=ROOT, env=tiny.os.environ | {"OMP_NUM_THREADS": "1"} | SECRETS, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = [*SECRETS.values(), "hunter2hunter2"]
    written = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert {"manifest.json", "metrics.jsonl", "model.safetensors"} <= {file.name for file in written}
    for file in written:
        content = file.read_bytes()
        assert [name for name in values if name.encode() in content] == [], file
    assert not any(value in done.stderr + done.stdout for value in values)
