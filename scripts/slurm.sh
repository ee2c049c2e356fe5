#!/bin/bash
# One run on several nodes of a SLURM cluster, saved before its time is up and started again until it is done.
#
#   sbatch scripts/slurm.sh --config=configs/dipom_xl2.py --config.data.dir=/shared/imagenet256 --workdir=/shared/runs/xl2
#
# Not tried on a cluster: what it starts was tried with several processes on one machine. JAX reads all it needs
# from SLURM, and gives each task one GPU: as many tasks a node as it has GPUs. Code, data and --workdir lie on a
# file system that all nodes see.
#
#SBATCH --job-name=pom_jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
# 180 s before the end every task gets SIGTERM: all save the same step and exit with 143.
#SBATCH --signal=TERM@180

set -u
source .venv/bin/activate

# GPU flags, all of which exist in XLA; none was measured here, and others report gains within the noise:
#   --xla_gpu_enable_latency_hiding_scheduler=true   overlaps the collectives of data and fsdp with products
#   --xla_gpu_deterministic_ops=true                 with it a resumed run has the same bits on GPUs, slower
#   --xla_gpu_autotune_level=0                       beside it, for the same bits from start to start
# export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true"

for attempt in $(seq 10); do
    # A task that dies takes the others with it; the first error line in the output names process and host.
    srun --kill-on-bad-exit=1 --label python -u train.py "$@"
    code=$?
    case $code in
        0 | 2 | 3 | 130) exit "$code" ;;                   # done, wrong input, lasting fault, or stopped by hand
        143) scontrol requeue "$SLURM_JOB_ID" && exit 0 ;; # time is up or the node is taken: go on later
    esac
    echo "slurm.sh: exit code $code, starting again ($attempt)"
    sleep 10
done
exit "$code"
