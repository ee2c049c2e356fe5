#!/bin/bash
# One run on all hosts of a Cloud TPU pod slice, started again when a host dies.
#
#   TPU=my-v5e-64 ZONE=us-west4-a scripts/tpu_pod.sh --config=configs/dipom_xl2.py --config.data.dir=/mnt/data/imagenet256 \
#       --workdir=/mnt/data/runs/xl2
#
# Without such a file system: --config.train.remote=gs://BUCKET/xl2 --workdir=runs/xl2, with the data on a disk of each
# host and `pip install -e '.[tpu,gcs]'`.
#
# Not tried on a TPU. JAX finds the other hosts in the metadata of the pod; no flag is needed. /mnt/data is a file
# system that all hosts see (Filestore, or a bucket mounted by gcsfuse, where lines of log.txt may come late). The
# repository was cloned to ~/pom_jax on all hosts, with `pip install -e '.[tpu]'` in its .venv.
#
# Maintenance is announced by SIGTERM: all hosts save the same step and exit with 143, and are started again here,
# however often. Twenty other ends are enough.

set -u
: "${TPU:?name of the TPU VM}" "${ZONE:?its zone}"
printf -v arguments '%q ' "$@"

attempt=0
while ((attempt < 20)); do
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
        --command="cd pom_jax && . .venv/bin/activate && exec python -u train.py $arguments"
    code=$?
    case $code in 0 | 2 | 3 | 130) exit "$code" ;; esac # done, wrong input, lasting fault, or stopped by hand
    ((code == 143)) || ((++attempt)) # maintenance is no fault
    echo "tpu_pod.sh: exit code $code, starting again (faults: $attempt of 20)"
    # A host that outlived the others still holds its chips.
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="pkill -f '[t]rain.py' || true"
    sleep 10
done
exit "$code"
