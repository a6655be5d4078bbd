#!/bin/bash
# `sbatch cluster/slurm.sh SWEEP.yaml RUN_DIR`, from a folder on a disk that all nodes share.
#SBATCH --job-name=mergebench-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
set -euo pipefail
sweep=${1:?SWEEP.yaml is missing}
out=${2:?RUN_DIR is missing}

# A virtual environment on the shared disk, with the wheel installed; see README.md.
# shellcheck disable=SC1091
source "${MERGEBENCH_RAY_VENV:-$HOME/mergebench-ray}/bin/activate"

# Nodes share the home, and so its token.
ray get-auth-token --generate > /dev/null
chmod 600 ~/.ray/auth_token
export RAY_AUTH_MODE=token
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds that nodes may be apart

# A number, not a name: some nodes know their own name as one of loopback.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname --ip-address | awk '{print $1}'):6379

# After a requeue, go on.
resume=()
if [[ -e $out/sweep.yaml ]]; then resume=(--resume); fi

# Starts Ray on every node, runs what follows -- on the first one, and ends Ray everywhere.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
  ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" \
  -- mergebench-ray tune "$sweep" --out "$out" --address "$address" "${resume[@]}"
