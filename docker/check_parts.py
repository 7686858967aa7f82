"""Fails an image build in which a part is missing that the GPU path is meant to have."""

import importlib.util
import sys

PARTS = ("torch", "transformer_engine", "flash_attn", "apex", "megatron.core", "transformers", "scipy", "lm_eval")

missing = [part for part in PARTS if importlib.util.find_spec(part) is None]
if missing:
    sys.exit(f"this image lacks {', '.join(missing)}: take another tag of the base image, or install them here")
