"""Every test runs with shapes and types checked at each function of the five packages, and on one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network for a model
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
# what is compared to many digits is computed in float32 on every processor
torch.cpu.get_capabilities = dict  # type: ignore[assignment]

PACKAGES = ("mmrlhf", "diffusion", "vlm", "selection", "apps")
install_import_hook(PACKAGES, "beartype.beartype")

# beartype can only check an argument against a protocol that isinstance understands
