"""One rank of a run that is asked to stop inside its n-th validation: argv = n, config, overrides.

Between two groups of micro-batches every rank asks whether a stop is agreed; here all agree on one in the n-th
validation, after its first group.
"""

import sys
from pathlib import Path

from megatron_synE.runtime.environment import hide_cuda

hide_cuda()

from megatron_synE.train import end_as_one_rank  # noqa: E402
from megatron_synE.trainer import Trainer  # noqa: E402
from megatron_synE.validation import Validator  # noqa: E402

validations = 0
groups = 0
run_all = Validator.run


def counted(self: Validator, model: object, should_stop: object) -> object:
    global validations, groups
    validations, groups = validations + 1, 0
    return run_all(self, model, should_stop)  # type: ignore[arg-type]


def stop_in_the_chosen_one(self: Trainer) -> bool:
    global groups
    groups += 1
    return validations == int(sys.argv[1]) and groups == 2


Validator.run = counted  # type: ignore[assignment, method-assign]
Trainer._stop_is_agreed = stop_in_the_chosen_one  # type: ignore[method-assign]
end_as_one_rank(Path(sys.argv[2]), sys.argv[3:])
