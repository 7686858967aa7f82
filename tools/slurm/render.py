"""The job scripts: of a training run, its conversion to Hugging Face, its evaluation, an acceptance, as text.

Values of the user stand in them quoted for the shell, in arrays at the top; what depends on the machine (nodes, ports,
cores) is asked of Slurm when the job runs, so a script can be moved to another partition as it is.
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Literal

from data_mixers.errors import ConfigError
from tools.slurm.job import TrainingJob, check_environment, check_resources, lead_time, seconds_of
from tools.slurm.options import Environment, Evaluation, Resources

Name = Literal["train", "export", "eval", "acceptance"]
Setting = tuple[str, str, str]
"""Of one `export NAME=value`, and the reason that stands beside it in the script."""


def render_training(job: TrainingJob, command: Sequence[str]) -> str:
    """The script that trains, saves when its time is over, and requeues itself until the run is finished.

    command: how this script was made, for its first lines.
    Errors: ConfigError if a save does not fit into the wall time.
    """
    lead, why = job.options.lead, "as asked for with --lead"
    if lead is None:
        lead, why = lead_time(job.config.run.dir / "metrics.jsonl")
    if lead >= seconds_of(job.resources.time):
        raise ConfigError(
            f"--time {job.resources.time}: a save needs {lead} s of it ({why}); ask for more time, or "
            "give a measured --lead"
        )
    directives = [
        f"job-name={job.config.run.name}",
        *_all_ranks(job.resources, on_gpus=job.config.device != "cpu", fewest_nodes=job.node_counts[-1]),
        f"signal=B:USR1@{lead}",
        "requeue",
    ]
    return _filled(
        "train",
        command,
        directives,
        job.resources,
        job.environment,
        settings_of(job.config.device, tp=job.config.parallel.tensor_model_parallel_size > 1),
        lead=f"# Told {lead} s before its wall time: {why}.",
        config=shlex.quote(str(job.config_path)),
        overrides=shlex.join(job.overrides),
        run_dir=shlex.quote(str(job.config.run.dir)),
        retries=str(job.options.retries),
        preflight="true" if job.options.preflight else "false",
        fewer_nodes=_fewer_nodes(job),
    )


def render_export(
    run_dir: Path, name: str, resources: Resources, environment: Environment, command: Sequence[str]
) -> str:
    """The script that turns a run's newest complete checkpoint into <run.dir>/hf and compares the two."""
    resources = replace(resources, nodes=1, min_nodes=None)
    directives = [f"job-name={name}-export", "nodes=1", "ntasks=1"]
    return _filled(
        "export", command, directives, resources, environment, settings_of("cpu"), run_dir=shlex.quote(str(run_dir))
    )


def render_eval(
    run_dir: Path,
    name: str,
    evaluation: Evaluation,
    resources: Resources,
    environment: Environment,
    command: Sequence[str],
    *,
    on_gpu: bool,
) -> str:
    """The script that evaluates <run.dir>/hf on each suite, into <run.dir>/eval; on one GPU if there are any."""
    resources = replace(resources, nodes=1, min_nodes=None)
    directives = [f"job-name={name}-eval", "nodes=1", "ntasks=1", *(["gpus-per-node=1"] if on_gpu else [])]
    commands = _commands(environment)
    # Of apptainer only the call for a step sees the GPUs; of pyxis the one for the batch script starts its own step.
    in_task = commands["in_task"] if environment.container == "apptainer" else commands["in_batch"]
    return _filled(
        "eval", command, directives, resources, environment, settings_of("cuda" if on_gpu else "cpu"),
        in_task=in_task, run_dir=shlex.quote(str(run_dir)), suites=shlex.join(evaluation.suites),
        options=shlex.join(evaluation.options()),
    )  # fmt: skip


def render_acceptance(
    out: Path,
    resources: Resources,
    environment: Environment,
    *,
    device: Literal["cpu", "cuda"],
    only: Sequence[str],
    command: Sequence[str],
) -> str:
    """The script that runs every layout against one card, kills a run and resumes it; its verdict: `out`, JSON.

    What it writes on the way lies beside it, in a folder of the same name ending in .work.
    """
    check_resources(resources)
    check_environment(environment)
    return _filled(
        "acceptance",
        command,
        ["job-name=syne-acceptance", *_all_ranks(resources, on_gpus=device == "cuda")],
        resources,
        environment,
        settings_of(device, tp=True),
        work=shlex.quote(str(out.with_suffix(".work"))),
        out=shlex.quote(str(out)),
        only=shlex.quote(",".join(only)),
        device=device,
    )


def _filled(
    name: Name,
    command: Sequence[str],
    directives: Sequence[str],
    resources: Resources,
    environment: Environment,
    settings: Sequence[Setting],
    **values: str,
) -> str:
    options = [
        *directives,
        *_cores(resources),
        f"time={resources.time}",
        "open-mode=append",
        "output=%x-%j.out",
        *(f"{option}={value}" if value else option for option, value in resources.options.items()),
    ]
    exports = [f"# {reason}\nexport {name}={value}" for name, value, reason in settings]
    exports += [f"export {variable}={shlex.quote(value)}" for variable, value in environment.variables.items()]
    return _template(name).substitute(
        # On one line, whatever it holds: a line break would end the comment.
        made="\\n".join(shlex.join(command).splitlines()),
        directives="\n".join(f"#SBATCH --{option}" for option in options),
        settings="\n".join(exports),
        cores_of_rank=_cores_of_rank(resources),
        **{**_commands(environment), **values},
    )


def settings_of(device: Literal["auto", "cpu", "cuda"], *, tp: bool = False) -> tuple[Setting, ...]:
    """Those for GPUs only where they may be used; tp: there is tensor parallelism."""
    common = (
        ("SLURM_EXPORT_ENV", "ALL", "a step gets this shell's variables, also where sbatch was told --export=NONE"),
        ("OMP_NUM_THREADS", "${SLURM_CPUS_PER_TASK:-1}", "a rank would start a thread for every core"),
        ("PYTHONFAULTHANDLER", "1", "a rank that crashes in native code prints its Python stack"),
        ("HF_HUB_OFFLINE", "1", "compute nodes have no internet: fail at once, not after a timeout"),
        ("TOKENIZERS_PARALLELISM", "false", "reader processes are forks; its threads would not survive one"),
    )
    if device == "cpu":
        return common
    cuda = [
        ("NCCL_DEBUG", "WARN", "NCCL names what failed; INFO would write megabytes for each rank"),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1", "a rank whose peer has gone ends, and does not wait for good"),
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000", "keeps the last collectives, to see which rank did not come"),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1", "and writes them down when one times out"),
        # A name that nobody can guess: what lies there is run, and /tmp is everybody's.
        ("TRITON_CACHE_DIR", "/tmp/triton-$RANDOM$RANDOM$RANDOM", "kernels kept in an NFS home are stale elsewhere"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", "less memory lost between blocks of other size"),
    ]
    if tp:
        reason = "one queue keeps kernels in order of launch: TP communication starts before the GEMM that hides it"
        cuda.append(("CUDA_DEVICE_MAX_CONNECTIONS", "1", reason))
    return (*common, *cuda)


def _fewer_nodes(job: TrainingJob) -> str:
    """The lines that choose among the nodes which Slurm gave; none where it must give all that are asked for."""
    if len(job.node_counts) == 1:
        return ""
    return _template("fewer_nodes").substitute(
        node_counts=" ".join(map(str, job.node_counts)),
        nodes=str(job.resources.nodes),
        ranks_per_node=str(job.resources.gpus_per_node),
        global_batch_size=str(job.config.training.global_batch_size),
    )


def _template(name: str) -> Template:
    return Template(Path(__file__).with_name(f"{name}.sbatch.in").read_text(encoding="utf-8"))


def _all_ranks(resources: Resources, *, on_gpus: bool, fewest_nodes: int | None = None) -> list[str]:
    gpus = [f"gpus-per-node={resources.gpus_per_node}"] if on_gpus else []
    if resources.min_nodes is not None:
        # No tasks: Slurm 22.05 cuts the range's upper end to the tasks of its lower one, and holds a requeued job to
        # the tasks of its last start, so that it never runs on fewer nodes. The steps say how many.
        return [f"nodes={fewest_nodes}-{resources.nodes}", *gpus]
    return [f"nodes={resources.nodes}", f"ntasks-per-node={resources.gpus_per_node}", *gpus]


def _cores(resources: Resources) -> list[str]:
    if resources.cpus_per_task is None:
        return ["exclusive", "mem=0"]
    if resources.min_nodes is not None:  # a job without tasks
        return [f"mincpus={resources.cpus_per_task * resources.gpus_per_node}"]
    return [f"cpus-per-task={resources.cpus_per_task}"]


def _cores_of_rank(resources: Resources) -> str:
    """As the job finds out. Where sbatch is not asked for them, the variable is of the job that submitted this one."""
    shared_out = "$((SLURM_CPUS_ON_NODE / SLURM_NTASKS_PER_NODE))"
    is_asked = any(option.startswith("cpus-per-task=") for option in _cores(resources))
    return f"${{SLURM_CPUS_PER_TASK:-{shared_out}}}" if is_asked else shared_out


def _commands(environment: Environment) -> dict[str, str]:
    """What stands before python: in every task of a step, and in the batch script."""
    python = shlex.quote(environment.python)
    if environment.container == "none":
        return {"srun_options": "", "in_task": python, "in_batch": python}
    image = shlex.quote(environment.image or "")
    if environment.container == "apptainer":
        binds = "".join(f" --bind {shlex.quote(mount)}" for mount in environment.mounts)
        run = f'--bind "$PWD" --pwd "$PWD"{binds} {image} {python}'
        return {"srun_options": "", "in_task": f"apptainer exec --nv {run}", "in_batch": f"apptainer exec {run}"}
    mounts = "".join(f",{mount}" for mount in environment.mounts)
    options = (
        f'--container-image={image} --container-mounts="$PWD:$PWD"{shlex.quote(mounts) if mounts else ""} '
        '--container-workdir="$PWD" --no-container-mount-home'
    )
    batch = f"srun --overlap --nodes=1 --ntasks=1 {options} {python}"
    return {"srun_options": options, "in_task": python, "in_batch": batch}
