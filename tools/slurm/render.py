"""The job script of a training run, and that of its conversion to Hugging Face, as text.

Values of the user stand in it quoted for the shell, in arrays at its top; what depends on the machine (nodes, ports,
cores) is asked of Slurm when the job runs, so a script can be moved to another partition as it is.
"""

import shlex
from pathlib import Path
from string import Template

from data_mixers.errors import ConfigError
from tools.slurm.job import Environment, Resources, TrainingJob, check_environment, check_resources, seconds_of
from tools.slurm.lead_time import LeadTime, lead_time
from tools.slurm.settings import settings_for

TRAIN, EXPORT = (Path(__file__).with_name(name) for name in ("train.sbatch.in", "export.sbatch.in"))


def render_training(job: TrainingJob, command: list[str]) -> str:
    """The script that trains, saves when its time is over, and requeues itself until the run is finished.

    command: how this script was made, for its first lines.
    """
    given = job.lead_seconds
    lead = (
        lead_time(job.config.run.dir / "metrics.jsonl")
        if given is None
        else LeadTime(given, "as asked for with --lead")
    )
    if lead.seconds >= seconds_of(job.resources.time):
        raise ConfigError(
            f"--time {job.resources.time}: a save needs {lead.seconds} s of it ({lead.reason}); ask for more time, or "
            "give a measured --lead"
        )
    resources = job.resources
    on_gpus = job.config.device != "cpu"
    directives = [
        f"job-name={job.config.run.name}",
        f"nodes={resources.nodes}",
        f"ntasks-per-node={resources.gpus_per_node}",
        *([f"gpus-per-node={resources.gpus_per_node}"] if on_gpus else []),
        *_node_share(resources),
        f"time={resources.time}",
        f"signal=B:USR1@{lead.seconds}",
        "requeue",
        "open-mode=append",
        "output=%x-%j.out",
        *_more(resources),
    ]
    settings = [f"# {setting.reason}\nexport {setting.name}={setting.value}" for setting in settings_for(job.config)]
    return Template(TRAIN.read_text(encoding="utf-8")).substitute(
        made=_comment(command),
        directives=_directives(directives),
        lead=f"# Told {lead.seconds} s before its wall time: {lead.reason}.",
        config=shlex.quote(str(job.config_path)),
        overrides=shlex.join(job.overrides),
        run_dir=shlex.quote(str(job.config.run.dir)),
        retries=job.retries,
        preflight="true" if job.preflight else "false",
        settings="\n".join([*settings, *_variables(job.environment)]),
        **_commands(job.environment),
    )


def render_export(run_dir: Path, name: str, resources: Resources, environment: Environment, command: list[str]) -> str:
    """The script that turns a run's newest complete checkpoint into <run.dir>/hf and compares the two."""
    check_resources(resources)
    check_environment(environment)
    directives = [
        f"job-name={name}-export",
        "nodes=1",
        "ntasks=1",
        *_node_share(resources),
        f"time={resources.time}",
        "open-mode=append",
        "output=%x-%j.out",
        *_more(resources),
    ]
    return Template(EXPORT.read_text(encoding="utf-8")).substitute(
        made=_comment(command),
        directives=_directives(directives),
        run_dir=shlex.quote(str(run_dir)),
        settings="\n".join(_variables(environment)),
        **_commands(environment),
    )


def _directives(options: list[str]) -> str:
    return "\n".join(f"#SBATCH --{option}" for option in options)


def _comment(command: list[str]) -> str:
    """The command on one line, whatever it holds: a line break would end the comment."""
    return "\\n".join(shlex.join(command).splitlines())


def _node_share(resources: Resources) -> list[str]:
    return ["exclusive", "mem=0"] if resources.cpus_per_task is None else [f"cpus-per-task={resources.cpus_per_task}"]


def _more(resources: Resources) -> list[str]:
    return [f"{name}={value}" if value else name for name, value in resources.options.items()]


def _variables(environment: Environment) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.variables.items()]


def _commands(environment: Environment) -> dict[str, str]:
    """What stands before python: in every task of a step, and in the batch script."""
    python = shlex.quote(environment.python)
    if environment.container == "none":
        return {"srun_options": "", "in_task": python, "in_batch": python}
    image = shlex.quote(environment.image or "")
    if environment.container == "apptainer":
        binds = "".join(f" --bind {shlex.quote(mount)}" for mount in environment.mounts)
        run = f'apptainer exec --nv --bind "$PWD" --pwd "$PWD"{binds} {image} {python}'
        return {"srun_options": "", "in_task": run, "in_batch": run.replace(" --nv", "")}
    mounts = "".join(f",{mount}" for mount in environment.mounts)
    options = (
        f'--container-image={image} --container-mounts="$PWD:$PWD"{shlex.quote(mounts) if mounts else ""} '
        '--container-workdir="$PWD" --no-container-mount-home'
    )
    batch = f"srun --overlap --nodes=1 --ntasks=1 {options} {python}"
    return {"srun_options": options, "in_task": python, "in_batch": batch}
