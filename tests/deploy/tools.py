"""Other people's programs: found in the PATH, run, and their output given back."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "kvasir"
HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
RUN_MAX_S = 120


class Failed(Exception):
    """What the program said on standard error, and on standard output after it."""


def found(name):
    path = shutil.which(name)
    assert path, f"{name} is not in the PATH; README.md says what is needed"
    return path


def run(*command, **options):
    """Returns standard output. Raises if the program says that it failed."""
    options = {"capture_output": True, "text": True, "timeout": RUN_MAX_S} | options
    done = subprocess.run([str(part) for part in command], **options)
    if done.returncode != 0:
        raise Failed(done.stderr + done.stdout)
    return done.stdout


def helm(*arguments, **options):
    return run(found("helm"), *arguments, **options)


def promtool(*arguments, **options):
    return run(found("promtool"), *arguments, **options)


def is_writing():
    return os.environ.get("KVASIR_WRITE_GOLDEN") == "1"


def is_golden(name, text):
    """Whether the file of that name in golden/ says the same. Writes it where that is asked for."""
    path = GOLDEN / name
    if is_writing():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return path.is_file() and path.read_text() == text
