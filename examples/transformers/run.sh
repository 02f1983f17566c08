#!/usr/bin/env bash
# `transformers serve`: plain PyTorch, the baseline to hold an engine against. Same trace
# and same output lengths as the vLLM examples, so the runs compare request by request:
#
#   MODEL=Qwen/Qwen2.5-7B-Instruct GPU=0 RATE=0.5 ./run.sh
#   loadgen report RUN_OF_VLLM RUN_OF_THIS
#
# BATCHING=--no-continuous-batching serves one request at a time; the others wait where
# nobody can see it, so give the replay --max-concurrency 1 then.
set -euo pipefail
cd "$(dirname "$0")"
model=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
gpu=${GPU:-0}
rate=${RATE:-0.5}
batching=${BATCHING:---continuous-batching}
trace=../../traces/sharegpt.jsonl

trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT

CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=$gpu \
  transformers serve "$model" --host 127.0.0.1 --port 8000 --device cuda:0 $batching &
engine=$!
until curl -sfo /dev/null http://127.0.0.1:8000/health; do kill -0 $engine; sleep 1; done

# Continuous batching starts with the first request and takes that request's sampling for
# all: this one is greedy as the replay is, and its seconds are nobody's measurement.
curl -sfo /dev/null http://127.0.0.1:8000/v1/completions -H 'content-type: application/json' \
  -d '{"prompt": "warm up", "max_tokens": 8, "temperature": 0}'

metering-proxy serve --upstream http://127.0.0.1:8000 --engine transformers \
  --power nvml --gpus "$gpu" &
proxy=$!
until curl -sfo /dev/null http://127.0.0.1:9464/readyz; do kill -0 $proxy; sleep 1; done

# --model must be the name the server was started with, letter for letter.
loadgen replay "$trace" --rate "$rate" --backend transformers --model "$model" \
  --url http://127.0.0.1:8080 --ledger http://127.0.0.1:9464 --metadata gpu="$gpu"
