"""A rank that resumes a run and writes what it loaded, without a step in between: argv = config, out, overrides."""

import sys
from pathlib import Path

from megatron_synE.checkpoint.dcp import save_chunks
from megatron_synE.checkpoint.layout import newest_complete, read_state
from megatron_synE.checkpoint.load import load_training_state
from megatron_synE.checkpoint.training_state import chunks_to_save
from megatron_synE.config.derive import derive
from megatron_synE.config.examine import examine
from megatron_synE.config.load import load_config
from megatron_synE.runtime.environment import ranks_from_environment

config = load_config(Path(sys.argv[1]), sys.argv[3:]).resolved
ranks = ranks_from_environment()
assert ranks is not None

from megatron_synE.build import build_model, build_optimizer  # noqa: E402
from megatron_synE.runtime import device as devices  # noqa: E402
from megatron_synE.runtime import distributed  # noqa: E402

device = devices.select("cpu", local_rank=0)
distributed.initialize(device, ranks, config.parallel, seed=1)
architecture = examine(config, world_size=ranks.world_size).architecture
assert architecture is not None
plan = derive(config, architecture, ranks.world_size, device="cpu")
model = build_model(config, plan, device)
optimizer = build_optimizer(config, plan, model)
folder = newest_complete(config.run.dir / "checkpoints")
assert folder is not None
load_training_state(model, optimizer, folder, read_state(folder))
save_chunks(Path(sys.argv[2]), chunks_to_save(model, optimizer))

distributed.shut_down()
