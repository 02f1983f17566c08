#!/usr/bin/env bash
# vLLM on one GPU with the metering proxy in front, and one replay through it.
#
#   MODEL=Qwen/Qwen2.5-7B-Instruct GPU=0 RATE=2 ./run.sh
set -euo pipefail
cd "$(dirname "$0")"
model=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
gpu=${GPU:-0} # index as nvidia-smi counts, for the engine and for the sensor
rate=${RATE:-2}
trace=../../traces/sharegpt.jsonl

trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT

# The two --enable flags tell the proxy when a request was scheduled and what came from
# the prefix cache: then its energy is `exact`, not `estimated`.
CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=$gpu \
  vllm serve "$model" --host 127.0.0.1 --port 8000 --max-model-len 8192 \
  --enable-per-request-metrics --enable-prompt-tokens-details &
engine=$!
until curl -sfo /dev/null http://127.0.0.1:8000/health; do kill -0 $engine; sleep 1; done

# --gpus takes the sensor's own numbers, whatever CUDA_VISIBLE_DEVICES says.
metering-proxy serve --upstream http://127.0.0.1:8000 --power nvml --gpus "$gpu" &
proxy=$!
# Ready once loaded idle power is known: no traffic before that.
until curl -sfo /dev/null http://127.0.0.1:9464/readyz; do kill -0 $proxy; sleep 1; done

loadgen replay "$trace" --rate "$rate" --url http://127.0.0.1:8080 \
  --ledger http://127.0.0.1:9464 --metadata gpu="$gpu"
