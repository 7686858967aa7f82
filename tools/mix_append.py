"""`syne mix append`: an entry for the future of a run's schedule, checked against what the run has read already."""

import json
from pathlib import Path

from data_mixers.errors import ConfigError
from data_mixers.schedule import Schedule, read_schedule
from data_mixers.schedule_diff import diff
from megatron_synE.checkpoint.layout import CHECKPOINTS, CommonState, iteration_name, newest_complete, read_state
from megatron_synE.config.examine import examine
from megatron_synE.config.fault import require
from megatron_synE.config.load import load_config, read_yaml
from megatron_synE.config.schema import RunConfig
from megatron_synE.mixing import mixture_of
from megatron_synE.optim.lr_schedule import LrSchedule
from megatron_synE.start import check_grown, check_past

RUN_CONFIG = "run_config.yaml"


def checked_skip(run: Path, text: str) -> tuple[str, list[str]]:
    """(What to resume the run with to leave out a range of samples, what changes by it.)

    Errors: ConfigError if the range is read already or ends a source too soon, DataError if there is no run.
    """
    config = load_config(run / RUN_CONFIG, []).resolved
    schedule = read_schedule(run)
    state = _newest_state(run)
    start, _, stop = text.partition(":")
    if not (start.isdecimal() and stop.isdecimal()):
        raise ConfigError(f"--skip {text} is not a range of samples; write start:stop, e.g. 1200:1264")
    consumed = 0 if state is None else state.consumed_samples
    changed = schedule.skip(int(start), int(stop), consumed_samples=consumed)
    override = "data.skip_samples=" + json.dumps([*config.data.skip_samples, text], separators=(",", ":"))
    examination = examine(load_config(run / RUN_CONFIG, [override]).resolved, world_size=1)
    require([fault for fault in examination.faults if fault.key == "data.skip_samples"], where=f"--skip {text}")
    return override, diff(schedule, changed)


def checked_stage(run: Path, stage: Path) -> tuple[str, list[str]]:
    """The same for one more stage at the end, with data of its own under `manifests` if it brings any.

    stage: a YAML file with what an entry of data.stages holds.
    Errors: ConfigError with every fault of the stage, or if it changes what is read already.
    """
    before = load_config(run / RUN_CONFIG, []).resolved
    entry = json.dumps(read_yaml(stage, what="stage"), ensure_ascii=False, separators=(",", ":"))
    override = f"data.stages.{len(before.data.stages)}={entry}"
    config = load_config(run / RUN_CONFIG, [override]).resolved
    examination = examine(config, world_size=1)
    # What hangs on the number of ranks is for `syne train` to say.
    sections = ("data.", "mixture.", "lr_schedule.")
    require([fault for fault in examination.faults if fault.key.startswith(sections)], where=str(stage))
    mixture = mixture_of(config, examination.manifests)
    stored, state = read_schedule(run), _newest_state(run)
    if state is not None and state.schedule is not None:
        stored = Schedule.from_json(state.schedule["json"])
        mixture = mixture.restored(state.schedule, where=str(run / CHECKPOINTS / iteration_name(state.iteration)))
        check_past(stored, mixture.schedule, consumed_samples=state.consumed_samples, where=str(run))
        check_grown(mixture, stored)
    return override, diff(stored, mixture.schedule) + _learning_rate(config, stored, mixture.schedule, state)


def _newest_state(run: Path) -> CommonState | None:
    newest = newest_complete(run / CHECKPOINTS, verify_hashes=False)
    return None if newest is None else read_state(newest)


def _learning_rate(config: RunConfig, before: Schedule, after: Schedule, state: CommonState | None) -> list[str]:
    """A line where the next step's rate changes: the schedule of rates ends with the last stage."""
    consumed, parent = 0, 0
    if state is not None:
        consumed = state.consumed_tokens
        parent = consumed - state.consumed_samples * before.seq_length  # of the run that this one branched from
    old, new = (
        LrSchedule(
            config.lr_schedule, lr=config.optimizer.lr, total_tokens=parent + schedule.num_samples * schedule.seq_length
        ).at(consumed)
        for schedule in (before, after)
    )
    return [] if old == new else [f"learning rate of the next iteration: {old:.4e} -> {new:.4e}"]
