"What has to work where the system is another one: models and training need nothing that only Unix has."

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ELSEWHERE = """
import sys, tempfile
from importlib import import_module
from pathlib import Path
import torch, torchvision  # which know by themselves where they are

for name in ("fcntl", "grp", "posix_ipc", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None  # importing it raises ImportError
import genbook
from genbook import create_model, from_pretrained, list_models, list_pretrained
from genbook.core import GenbookError
from genbook.datasets import load
from genbook.data import Batches
from genbook.lab import runs, zoo
from genbook.steps import Step
from genbook.train import fit

for module in sorted(p.stem for p in Path(genbook.__file__).parent.glob("models/[a-z]*.py")):
    import_module(f"genbook.models.{module}")
for module in sorted(p.stem for p in Path(genbook.__file__).parent.glob("measure/[a-z]*.py")):
    import_module(f"genbook.measure.{module}")
digits = load("digits")
model = create_model("vae_mlp_digits", digits.image_shape, levels=digits.levels)
step = Step(model, device="cpu")
fit(step, Batches(digits.train, 16), 2, progress=False)
print(step.eval_model().sample(3).shape, from_pretrained(sorted(list_pretrained())[0]).training, len(list_models()) > 20)
try:
    runs.Run(Path(tempfile.mkdtemp()) / "run")
except GenbookError as e:
    print(str(e).partition("locked")[2])
"""


def test_models_and_training_work_without_what_only_unix_has():
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["torch.Size([3, 1, 8, 8]) False True", " on this system; runs need Linux or macOS"]


def test_the_package_says_that_it_has_types(root):
    assert (root / "genbook/py.typed").is_file() and '"py.typed"' in (root / "setup.py").read_text(encoding="utf-8")
