"""One rank of a run whose rank 1 has another learning rate, or OTHER_MANIFEST: argv = config, overrides."""

import os
import sys
from pathlib import Path

from megatron_synE.runtime.environment import hide_cuda
from megatron_synE.train import end_as_one_rank

hide_cuda()
other = []
if os.environ["RANK"] == "1":
    manifest = os.environ.get("OTHER_MANIFEST")
    other = [f"data.manifests=[{manifest}]"] if manifest else ["optimizer.lr=2e-3"]
end_as_one_rank(Path(sys.argv[1]), [*sys.argv[2:], *other])
