"""The launch files of benchmarks/launch, as far as one machine can run them."""

import os
import re
import subprocess

import jax
import pytest
import tyro
import yaml

from musicjax.arguments import parse
from musicjax.configs import mt3
from musicjax.configs.onsets_frames import get_config
from musicjax.data.render import RenderConfig
from musicjax.hub import load_model, read_header
from musicjax.train import parse_overrides
from musicjax.train.launch import COORDINATOR, PROCESS, PROCESSES, connect


@pytest.fixture
def slurm(root, tmp_path):
    """Run the batch script with an `srun` that ends with a given code; what was called."""
    script = root / "benchmarks" / "launch" / "slurm.sbatch"
    for name, ending in (("srun", "exit $CODE"), ("scontrol", "")):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>"$CALLS"\n{ending}\n')
        program.chmod(0o755)

    def run(code, *args):
        calls = tmp_path / f"calls-{code}"
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "CODE": str(code),
            "SLURM_JOB_ID": "77",
        }
        done = subprocess.run(["bash", str(script), *args], env=environment, capture_output=True)
        return done.returncode, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_slurm_starts_the_verb_with_all_its_arguments(slurm):
    args = ["onsets_frames", "base", "--output", "/shared/a run"]
    assert slurm(0, *args) == (
        0,
        ["srun --wait=300 musicjax train onsets_frames base --output /shared/a run"],
    )


@pytest.mark.parametrize(("code", "again"), [(143, True), (1, False), (2, False), (0, False)])
def test_slurm_queues_a_stopped_run_again_and_no_other(slurm, code, again):
    ended, calls = slurm(code, "onsets_frames")
    assert ended == code
    assert ("scontrol requeue 77" in calls) == again


def test_slurm_without_a_config_is_told(slurm):
    assert slurm(5) == (2, [])


def test_slurm_starts_one_process_a_gpu(root):
    text = (root / "benchmarks" / "launch" / "slurm.sbatch").read_text()
    lines = [x.removeprefix("#SBATCH --") for x in text.splitlines() if x.startswith("#SBATCH ")]
    options = dict(line.partition("=")[::2] for line in lines)
    # jax gives each task of a machine the device of its number; it must exist, and none be idle.
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert options["signal"].startswith("TERM@") and "requeue" in options


@pytest.fixture
def pods(root):
    """What Kubernetes is asked for: the set, its job, and the process of each machine."""
    asked = yaml.safe_load((root / "benchmarks" / "launch" / "kubernetes.yaml").read_text())
    (job,) = asked["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return asked, job, container


def test_kubernetes_runs_a_command_that_the_trainer_understands(pods):
    _, _, container = pods
    program, verb, config, variant = container["command"]
    assert (program, verb, config) == ("musicjax", "train", "onsets_frames")
    found = parse_overrides(get_config(variant), container["args"])
    assert found.output.startswith(container["volumeMounts"][0]["mountPath"])
    assert found.data.batch_size % job_size(pods) == 0


def job_size(pods):
    spec = pods[1]["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] and spec["completionMode"] == "Indexed"
    return spec["completions"]


def test_kubernetes_processes_find_each_other(pods, monkeypatch):
    asked, job, container = pods
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    number = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    index = next(entry for entry in container["env"] if entry["name"] == PROCESS)
    assert index["valueFrom"]["fieldRef"]["fieldPath"] == number

    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: joined.append(args))
    for process in range(job_size(pods)):
        connect({**environment, PROCESS: str(process)})
    host = f"{asked['metadata']['name']}-{job['name']}-0-0.{asked['spec']['network']['subdomain']}"
    port = container["ports"][0]["containerPort"]
    assert joined == [(f"{host}:{port}", job_size(pods), n) for n in range(job_size(pods))]
    assert environment[COORDINATOR] == f"{host}:{port}" and PROCESSES in environment


def test_kubernetes_gives_a_stopped_run_time_and_starts_all_again(pods):
    asked, job, _ = pods
    assert asked["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert job["template"]["spec"]["backoffLimit"] == 0  # one that fails fails all, at once
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 120


@pytest.fixture
def mt3_mini(root, tmp_path):
    """The commands of the script that makes mt3.mini, as lists of words; nothing is run."""
    program = tmp_path / "bin" / "musicjax"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nfor word; do printf "%s\\n" "$word" >>"$CALLS"; done; echo >>"$CALLS"\n'
        '[ "$1" != convert ] || eval "echo weights >\\${$#}"\n'
    )
    program.chmod(0o755)

    def run(**settings):
        calls = tmp_path / "calls"
        path = f"{program.parent}:{os.environ['PATH']}"
        environment = {"PATH": path, "CALLS": str(calls), "OUT": str(tmp_path), **settings}
        script = root / "benchmarks" / "launch" / "mt3_mini.sh"
        done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [part.split("\n") for part in calls.read_text().strip().split("\n\n")], done.stdout

    return run


@pytest.mark.parametrize("settings", [{"TINY": "1"}, {"MIDI": "midi", "FONTS": "a.sf2 b.sf3"}])
def test_mt3_mini_is_made_by_commands_that_exist(mt3_mini, root, tmp_path, settings):
    commands, told = mt3_mini(**settings)
    rendered = [tyro.cli(RenderConfig, args=c[2:]) for c in commands if c[:2] == ["data", "render"]]
    trainings = [c for c in commands if c[0] == "train"]
    assert all(c[1:3] == ["mt3", "mini"] for c in trainings)
    ears, mini = (parse_overrides(mt3.get_config("mini"), c[3:]) for c in trainings)
    assert ears.model.token_weight == 0 and mini.model.token_weight == 1
    assert mini.init == ears.output != mini.output
    assert ears.data == mini.data
    folders = {str(config.out): config for config in rendered}
    given = {entry for entry in (*mini.data.train, *mini.data.valid) if entry != "composer:band"}
    assert given == folders.keys()
    for entry in mini.data.valid:
        assert entry == "composer:band" or folders[entry].split == "valid"
    exported = [parse(c) for c in commands if c[0] == "convert"]
    assert [e.checkpoint for e in exported] == [
        [f"{run.output}/best.safetensors"] for run in (ears, mini)
    ]
    assert {e.compute_dtype for e in exported} == {"float32"}
    assert len(re.findall(r'sha256="[0-9a-f]{64}", size_bytes=8$', told, re.M)) == 2
    if "TINY" not in settings:  # what is told elsewhere is what is done
        steps = (ears.steps, mini.steps)
        assert (
            f"--steps {ears.steps} " in mt3.__doc__ and mini.steps == mt3.get_config("mini").steps
        )
        card = (root / "models" / "mt3" / "card.md").read_text()
        assert "{:,} and {:,} steps of {} clips".format(*steps, mini.data.batch_size) in card
        assert all("TimGM6mb" not in name for config in rendered for name in config.instruments)


@pytest.mark.slow
def test_mt3_mini_is_made_in_small_and_goes_on_where_it_was(root, tmp_path):
    script = root / "benchmarks" / "launch" / "mt3_mini.sh"
    environment = {**os.environ, "TINY": "1", "OUT": str(tmp_path)}
    told = []
    for _ in range(2):
        done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told.append(re.findall(r'sha256="[0-9a-f]{64}", size_bytes=\d+', done.stdout))
    assert told[0] == told[1] and len(told[0]) == 2  # the second time nothing was trained
    found = load_model(tmp_path / "mini.safetensors")
    assert found.config.policy.dtype == "float32"
    assert read_header(tmp_path / "ears.safetensors")["extra"]["step"] == 2
    assert not load_model(tmp_path / "ears.safetensors").model.transformer.head[...].any()
