#!/bin/bash
# A server of the Tinker API (SkyRL 0.4.0, JAX) on the GPUs of this node, and a run that trains an adapter on it.
#
#   python3.12 -m venv skyrl && skyrl/bin/pip install 'skyrl[tinker,jax,ray,gpu]==0.4.0' tinker==0.25.0 uv
#   SKYRL=$PWD/skyrl bash skyrl-server.sh /models/Qwen3-4B-Instruct-2507 my.toml /shared/runs/mine
#
# The server needs an environment of its own (its Ray and Python are not memtrain's) and weights in float32; see
# docs/tinker.md. It asks nobody for a key, so it listens to this machine alone.
set -euo pipefail

model=${1:?usage: bash skyrl-server.sh MODEL RECIPE FOLDER}
recipe=${2:?usage: bash skyrl-server.sh MODEL RECIPE FOLDER}
out=${3:?usage: bash skyrl-server.sh MODEL RECIPE FOLDER}
port=${PORT:-8000}
gpus=${GPUS:-8} # the model is split over so many
rank=${RANK:-16}
environment=${SKYRL:-$PWD/skyrl}
state=$out-skyrl # beside the run: a run's folder holds nothing else
mkdir -p "$state"

# Adapter slots: the base model's, the policy's, the reference's. Raise both batch sizes where memory has room.
config=$(
    printf '{"max_lora_adapters": 3, "max_lora_rank": %d, "tensor_parallel_size": %d, ' "$rank" "$gpus"
    printf '"gradient_checkpointing": true, "train_micro_batch_size": 4, "sample_max_num_sequences": 64}'
)
VIRTUAL_ENV=$environment PATH=$environment/bin:$PATH uv run --active --no-project -m skyrl.tinker.api \
    --base-model "$model" --backend jax --backend-config "$config" \
    --checkpoints-base "$state/checkpoints" --database-url "sqlite:///$state/tinker.db" \
    --host 127.0.0.1 --port "$port" >"$state/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT

until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/api/v1/healthz"; do
    kill -0 "$server" 2>/dev/null || { tail -n 20 "$state/server.log" >&2; exit 1; }
    sleep 2
done

export TINKER_BASE_URL="http://127.0.0.1:$port"
# This backend does not clip gradients, and compiles once where requests have whole micro-batches.
memtrain train "$recipe" --set engine=tinker "model.lora_rank=$rank" train.grad_clip=0.0 tinker.rows_multiple=4 \
    --out "$out" --resume
