"""The launch files of benchmarks/launch, as far as one machine can run them."""

import os
import subprocess

import jax
import pytest
import yaml

from musicjax.configs.onsets_frames import get_config
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
