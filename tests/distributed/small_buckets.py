"""A rank whose ZeRO buckets are a thousand times smaller than a unit: argv = elements, config, overrides.

Layers are cut into several buckets, and matrices larger than one are summed in slices.
"""

import sys
from pathlib import Path

from megatron_synE.runtime.environment import hide_cuda

hide_cuda()

import megatron_synE.sharding.data_parallel as data_parallel  # noqa: E402
from megatron_synE.train import end_as_one_rank  # noqa: E402

data_parallel.default_bucket_size = lambda ranks: int(sys.argv[1])

end_as_one_rank(Path(sys.argv[2]), sys.argv[3:])
