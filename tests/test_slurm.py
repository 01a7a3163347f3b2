"""A study on a real Slurm: one node on the loopback, started for the test and stopped after it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

BIN = Path(sys.executable).parent
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
CONFIG = """
ClusterName=lesson
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort=27817
SlurmdPort=27818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MpiDefault=none
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:1 State=UNKNOWN
PartitionName=sea Nodes={host} Default=YES MaxTime=120 State=UP
"""
STUDY = {
    "folds": 2,
    "quick": True,
    "models": {"basic_cnn": {}},
}
STUDY |= dict.fromkeys(("eda", "gradcam", "robustness", "blend"), False)


def reason_to_skip():
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm"
    if os.geteuid() != 0:
        return "only root may start Slurm's daemons"
    if Path("/etc/slurm/slurm.conf").exists():
        return "this machine has a Slurm of its own"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Munge, Slurm's controller and one node with one (make-believe) graphics card."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    folder, host = tmp_path_factory.mktemp("slurm"), os.uname().nodename.split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    for place in (folder, *folder.parents):  # munge wants nobody else to be able to write above its socket
        place.chmod(0o1777 if str(place) == "/tmp" else place.stat().st_mode & ~0o022 | 0o055)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    conf = Path("/etc/slurm")
    conf.mkdir(exist_ok=True)
    text = CONFIG.format(folder=folder, host=host, cores=os.cpu_count(), memory=memory)
    (conf / "slurm.conf").write_text(text)
    (conf / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    places = [
        f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file", "socket", "pid-file", "log-file")
    ]
    try:
        subprocess.run(["munged", "--force", *places, f"--seed-file={folder}/munge.seed"], check=True)
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon], check=True)
        end = time.monotonic() + 30
        while "idle" not in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout:
            assert time.monotonic() < end, (folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.5)
        yield folder
    finally:
        for name in ("slurmd", "slurmctld", "munge"):
            if (folder / f"{name}.pid").is_file():
                subprocess.run(["kill", (folder / f"{name}.pid").read_text().strip()])
        for name in ("slurm.conf", "gres.conf"):
            (conf / name).unlink()


@pytest.mark.slurm
@pytest.mark.timeout(400)
def test_run_with_the_executor_slurm_makes_every_notebook_a_job(slurm, checkout, tiny):
    sizes = {"cores": 1, "memory_gb": 2, "hours": 0.5}
    resources = {stage: sizes for stage in ("train", "knn", "report")}
    study = {"study": "cluster", "data_dir": str(tiny), "resources": resources} | STUDY
    (checkout / "cluster.yaml").write_text(yaml.safe_dump(study))
    quickly = "--seconds-between-status-checks 2 --slurm-init-seconds-before-status-checks 2"
    more = f"--default-resources slurm_partition=sea --slurm-status-command squeue --slurm-no-account {quickly}"
    words = ["run", "cluster.yaml", "--executor", "slurm", "--jobs", "4", "--snakemake", more]
    done = subprocess.run(
        [BIN / "happywhale", *words],
        cwd=checkout,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("has been submitted with SLURM jobid") == 4, "every notebook is a job of Slurm's"
    folder = checkout / "outputs" / "cluster-quick"
    records = sorted(folder.rglob("*.run.json"))
    assert len(records) == 4 and (folder / "report.json").is_file() and "MAP@5 of basic_cnn" in done.stdout
    for record in map(json.loads, (p.read_text() for p in records)):
        trained = record["stage"] == "train"
        assert record["environment"]["CUDA_VISIBLE_DEVICES"] == ("0" if trained else "-1"), (
            "Slurm's card, for trainings"
        )
    again = subprocess.run([BIN / "happywhale", *words], cwd=checkout, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and "submitted" not in again.stderr
