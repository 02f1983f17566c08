#!/usr/bin/env bash
# vLLM with tensor parallelism on two GPUs. They work on every request together, so they
# are one group with one ledger: a request's joules are of both, never split by GPU.
#
#   MODEL=Qwen/Qwen2.5-32B-Instruct GPUS=0,1 RATE=2 ./run.sh
set -euo pipefail
cd "$(dirname "$0")"
model=${MODEL:-Qwen/Qwen2.5-32B-Instruct}
gpus=${GPUS:-0,1} # exactly those the engine runs on; others of the host stay out
rate=${RATE:-2}
trace=../../traces/sharegpt.jsonl

trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT

CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=$gpus \
  vllm serve "$model" --host 127.0.0.1 --port 8000 --max-model-len 8192 \
  --tensor-parallel-size 2 \
  --enable-per-request-metrics --enable-prompt-tokens-details &
engine=$!
until curl -sfo /dev/null http://127.0.0.1:8000/health; do kill -0 $engine; sleep 1; done

metering-proxy serve --upstream http://127.0.0.1:8000 --power nvml --gpus "$gpus" &
proxy=$!
until curl -sfo /dev/null http://127.0.0.1:9464/readyz; do kill -0 $proxy; sleep 1; done

loadgen replay "$trace" --rate "$rate" --url http://127.0.0.1:8080 \
  --ledger http://127.0.0.1:9464 --metadata gpus="$gpus"
