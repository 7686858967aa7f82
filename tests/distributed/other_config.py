"""One rank of a run whose rank 1 has OTHER as a further override, or sees another folder: argv = config, overrides.

COPY=folder:other   rank 1 reads manifest.json of `other` where the configuration names `folder`
BF16=1              rank 1's processor multiplies bf16 in hardware, the others' do not
NO_FP8=1            rank 1's card has no FP8
READ_ONLY=1         rank 1 cannot write to the run folder
HF=folder           rank 1 reads weights and config.json of this model where the configuration names another
"""

import os
import sys
from pathlib import Path
from typing import Any

from data_mixers.errors import ConfigError
from megatron_synE.runtime.environment import hide_cuda

hide_cuda()  # before torch is imported, so what imports it stands below

from megatron_synE.config import derive, examine  # noqa: E402
from megatron_synE.runtime.run_dir import RunDir  # noqa: E402
from megatron_synE.train import end_as_one_rank  # noqa: E402

overrides = sys.argv[2:]
read_manifest = examine.read_manifest


def of_the_copy(path: Path) -> Any:
    folder, other = map(Path, os.environ["COPY"].split(":"))
    return read_manifest(other if path == folder else path)


def refused(self: RunDir) -> None:
    raise ConfigError(f"run.dir={self.root}: cannot be written (Read-only file system); choose another folder")


if "BF16" in os.environ:
    derive.cpu_has_bf16 = lambda: os.environ["RANK"] == "1"


def card_without_fp8() -> None:
    from megatron_synE.runtime.device import Device

    Device.has_fp8 = property(lambda self: False)  # type: ignore[assignment,method-assign]


def replace_model(other: Path) -> None:
    from megatron_synE.checkpoint.hf_folder import HfFolder
    from megatron_synE.config import derive

    init, read = HfFolder.__init__, derive.read_hf_config
    HfFolder.__init__ = lambda self, path: init(self, other)  # type: ignore[method-assign]
    derive.read_hf_config = lambda path: read(other)


if os.environ["RANK"] == "1":
    if "OTHER" in os.environ:
        overrides.append(os.environ["OTHER"])
    if "HF" in os.environ:
        replace_model(Path(os.environ["HF"]))
    if "NO_FP8" in os.environ:
        card_without_fp8()
    if "COPY" in os.environ:
        examine.read_manifest = of_the_copy
    if "READ_ONLY" in os.environ:
        RunDir.create = refused  # type: ignore[method-assign]
end_as_one_rank(Path(sys.argv[1]), overrides)
