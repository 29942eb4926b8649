"""Everything about a GPU in one command: parity, decoding, training, and a text from training to generation.

    make gpu            under 10 minutes
    make gpu-quick      under 4 minutes

Without a GPU it says so and exits with 2. It needs Python alone: where this Python has no torch and ONNX Runtime that
work on CUDA, it makes the virtual environment .venv-gpu, once; that time is not counted. Each part runs in a process of
its own with its share of the time; one that fails is reported, the others go on, and the exit code is 1. A whole run on
a GPU replaces the section of docs/benchmarks.md. To try the script itself on a machine without a GPU:

    python benchmarks/gpu.py --device cpu --small
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path.insert(0, str(ROOT / "typings"))  # where this project is importable before it is installed

from adaptive_lm.runtime.execution.providers import find_driver_problem  # noqa: E402 - needs the path above

ENVIRONMENT = ROOT / ".venv-gpu"
PACKAGES = ["-e", f"{ROOT}[train]", "onnxruntime-gpu[cuda,cudnn]", "transformers"]
WORKS = """
import sys, torch, adaptive_lm.train
from adaptive_lm.runtime.execution.providers import find_cuda_problem
problem = None if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU"
problem = problem or find_cuda_problem()
sys.exit(problem and f"{problem}")
"""
"""Exits with the reason why this Python cannot use the GPU."""
CPU_WORKS = "import torch, onnxruntime, adaptive_lm.train"
PARTS = {"parity": (100, 45), "decode": (170, 70), "train": (130, 60), "text": (170, 55)}
"""Seconds of each part, of 570 and of 230. The last one takes what the others left."""
SLOWER = 4
"""Factor of the seconds in a trial on the CPU, where compiling takes minutes."""
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
Result = dict[str, Any]


def main() -> int:
    """Run the parts; return the exit code."""
    asked = _arguments()
    if asked.device == "cuda":
        problem = find_driver_problem()
        if problem is not None:
            print(f"no GPU here: {problem}; run this where an NVIDIA GPU and its driver are", file=sys.stderr)
            return 2
    python = _python(asked.device)
    if python is None:
        return 1
    factor = SLOWER if asked.small and asked.device == "cpu" else 1
    shares = {name: factor * seconds[asked.quick] for name, seconds in PARTS.items()}
    began, total = time.monotonic(), sum(shares.values())
    report: Result = {"quick": asked.quick, "device": asked.device, "small": asked.small, "parts": {}}
    report["machine"] = _machine(python)
    with tempfile.TemporaryDirectory(prefix="adaptive-gpu-") as folder:
        work = Path(asked.work or folder)
        for name, seconds in shares.items():
            left = total - (time.monotonic() - began)
            share = left if name == "text" else min(seconds, left)
            print(f"part {name}, {share:.0f} s", file=sys.stderr, flush=True)
            report["parts"][name] = run_part(python, name, asked, share, work)
    report["seconds"] = time.monotonic() - began
    return _publish(report, asked)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Under 4 minutes instead of under 10.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the script itself.")
    parser.add_argument("--small", action="store_true", help="Tiny models, to try the script itself.")
    parser.add_argument("--data", default=_text(), help="Text to train on; by default cpp-docs where it is, else the "
                        "text that comes with this project.")  # fmt: skip
    parser.add_argument("--work", help="Folder for models, which is kept; by default a temporary one.")
    parser.add_argument("--json", help="File to write all figures to.")
    return parser.parse_args()


def _text() -> str:
    there = ROOT.parent / "shared" / "data" / "cpp-docs" / "pages.jsonl"
    return str(there) if there.exists() else "builtin:python-docs"


def _python(device: str) -> str | None:
    """Return a Python whose packages can use the device, after installing them where none has; None if that fails."""
    own = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    for candidate in (sys.executable, str(ROOT / ".venv" / "bin" / "python"), str(own)):
        if Path(candidate).exists() and _problem(candidate, device) is None:
            return candidate
    if device == "cpu":
        print("no Python here has the packages; type: make check", file=sys.stderr)
        return None
    print(
        f"installing into {ENVIRONMENT.name}, once; torch with CUDA is large, so this can take minutes", file=sys.stderr
    )
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    if subprocess.call([str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]):
        print("the installation failed, see above; then type make gpu again", file=sys.stderr)
        return None
    problem = _problem(str(own), device)
    if problem is not None:
        print(f"the GPU cannot be used after the installation: {problem}; install a torch and an onnxruntime-gpu of "
              f"one CUDA version into {ENVIRONMENT.name}, which this driver supports", file=sys.stderr)  # fmt: skip
        return None
    return str(own)


def _problem(python: str, device: str) -> str | None:
    """Return why a Python cannot run the parts; None if it can."""
    script = WORKS if device == "cuda" else CPU_WORKS
    done = subprocess.run([python, "-c", script], stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else "it does not start") if done.returncode else None


def _machine(python: str) -> Result:
    """Return what was measured on."""
    script = (
        "import json, platform, importlib.metadata as m, torch, onnxruntime\n"
        "from adaptive_lm.runtime.measuring.machine import cpu_name\n"
        "gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None\n"
        "print(json.dumps({'gpu': gpu and gpu.name, 'memory_bytes': gpu and gpu.total_memory, 'cpu': cpu_name(),\n"
        " 'system': platform.system() + ' ' + platform.machine(), 'cuda': torch.version.cuda,\n"
        " 'torch': torch.__version__, 'onnxruntime': onnxruntime.__version__}))"
    )
    done = subprocess.run([python, "-c", script], stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    machine: Result = json.loads(done.stdout) if done.returncode == 0 else {}
    return machine | {"date": time.strftime("%Y-%m-%d")}


def run_part(python: str, name: str, asked: argparse.Namespace, seconds: float, work: Path) -> Result:
    """Run a part; return its results, and what went wrong under `failures`."""
    if seconds < 5:
        return {"rows": [], "facts": {}, "failures": ["no time was left"], "seconds": 0.0}
    data = str(Path(asked.data).resolve()) if Path(asked.data).exists() else asked.data  # a part has another folder
    spec = {
        "device": asked.device, "small": asked.small, "seconds": seconds, "data": data,
        "work": str(work.resolve() / name),
    }  # fmt: skip
    command = [python, "-m", f"accelerator.{name}", json.dumps(spec)]
    began, stopped = time.monotonic(), False
    # a cache of its own: a part that is stopped while it compiles would leave a broken file in the user's
    environment = {**os.environ, **QUIET, "TORCHINDUCTOR_CACHE_DIR": str(work.resolve() / "inductor")}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, env=environment, cwd=FOLDER, start_new_session=True)
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            stopped, code = True, 0
        finally:
            _stop(process)
        output.seek(0)
        lines = [line for line in output.read().splitlines() if line.startswith("{") and line.endswith("}")]
    result: Result = json.loads(lines[-1]) if lines else {"rows": [], "facts": {}, "failures": []}
    if stopped:
        result["failures"].append(f"stopped after {seconds:.0f} s, before its end")
    elif code:
        result["failures"].append(f"ended with exit code {code}")
    for line in result["failures"]:
        print(f"  FAILED {line}", file=sys.stderr)
    return result | {"seconds": time.monotonic() - began}


def _stop(process: "subprocess.Popen[Any]") -> None:
    """End a part and the processes that it started."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, 9)
        else:
            process.kill()
        process.wait()


def _publish(report: Result, asked: argparse.Namespace) -> int:
    """Print the tables and write them where they belong; return the exit code."""
    from accelerator.report import markdown
    from page.section import replace_section

    text = markdown(report)
    print(text)
    if asked.json:
        Path(asked.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    failed = any(part["failures"] for part in report["parts"].values())
    if asked.device == "cuda" and not (asked.quick or asked.small or failed):
        replace_section(ROOT / "docs" / "benchmarks.md", "gpu", text)
    elif asked.device == "cuda":
        print("docs/benchmarks.md is replaced by a whole run without failures only", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
