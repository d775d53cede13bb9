# Setup, the same in every notebook: finds the library, or fetches it, and picks the device.
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = "https://github.com/diffusion-book/diffusion-book"
here = Path.cwd()
sys.path[:0] = [str(d) for d in (here, *here.parents) if (d / "diffusion_lib").is_dir()][:1]
if find_spec("diffusion_lib") is None:  # on Colab: add what is missing, replace nothing
    names = ("safetensors", "tqdm", "ipywidgets", "anywidget", "latex2mathml", "sklearn")
    missing = [name.replace("sklearn", "scikit-learn") for name in names if not find_spec(name)]
    library = ["--no-deps", f"{REPOSITORY}/archive/refs/heads/main.zip"]
    for wanted in filter(None, [missing, library]):
        if subprocess.call([sys.executable, "-m", "pip", "install", "--quiet", *wanted]):
            raise RuntimeError(
                f"diffusion_lib could not be installed from {REPOSITORY}. Check the connection and "
                "run this cell again, or put the folder diffusion_lib beside this notebook."
            )
    sys.path_importer_cache.clear()  # so that what was just installed is seen

import torch

import diffusion_lib.viz

diffusion_lib.viz.use_style()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
profile = os.environ.get("DIFFUSION_PROFILE", "gpu" if device.type == "cuda" else "cpu")
print(f"device: {device}, profile: {profile}")
