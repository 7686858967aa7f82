"""The exit codes of every command; documented in docs/exit_codes.md."""

from data_mixers.errors import UserError

FINISHED = 0
USER_ERROR = 2
DATA_ERROR = 3
CHECKPOINT_ERROR = 4
DIVERGED = 5
HANG = 6
NO_PROGRESS = 7
LEASE_LOST = 8
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130  # what a shell reports for SIGINT

MEANINGS = {
    FINISHED: "finished",
    USER_ERROR: "the user's input or configuration",
    DATA_ERROR: "data",
    CHECKPOINT_ERROR: "checkpoint or conversion",
    DIVERGED: "diverged: loss or gradient norm is not finite, or the loss spiked",
    HANG: "hang",
    NO_PROGRESS: "no progress",
    LEASE_LOST: "a later restart holds the run; this copy stopped",
    PREEMPTED: "checkpointed, requeue me",
}


class CheckpointError(UserError):
    """A checkpoint or HF folder that is missing, incomplete, damaged, or does not fit the model."""

    exit_code = CHECKPOINT_ERROR


class DivergedError(UserError):
    """Loss or gradient norm is not finite, or the loss spiked."""

    exit_code = DIVERGED


class HangError(UserError):
    """No rank, or not every rank, gets further."""

    exit_code = HANG


class NoProgressError(UserError):
    """The run was restarted as often as it may be without getting further."""

    exit_code = NO_PROGRESS


class LeaseLostError(UserError):
    """Another process has become the run's writer; this one must not write any more."""

    exit_code = LEASE_LOST


class OneRankError(UserError):
    """A fault that this rank alone can see: it must say so itself, because its peers are in a collective."""

    def __init__(self, fault: UserError) -> None:
        super().__init__(str(fault))
        self.exit_code = fault.exit_code
