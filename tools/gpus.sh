#!/bin/sh
# Tells Spark which GPUs a machine has, as {"name": "gpu", "addresses": ["0", "1"]}; the script for
# spark.worker.resource.gpu.discoveryScript and spark.executor.resource.gpu.discoveryScript.
# Those of CUDA_VISIBLE_DEVICES where it is set, else all that nvidia-smi lists.
fail() { echo "captionlake: $1" >&2; exit 1; }

if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  gpus=$(echo "$CUDA_VISIBLE_DEVICES" | tr , '\n')
  [ "$gpus" = -1 ] && gpus=
  [ -n "$gpus" ] || fail "no GPU: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES hides them all; unset it, or name some"
else
  command -v nvidia-smi >/dev/null 2>&1 ||
    fail "no GPU: there is no nvidia-smi on PATH; install the driver, or name the cards in CUDA_VISIBLE_DEVICES"
  gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader) || fail "nvidia-smi failed: $gpus"
  [ -n "$gpus" ] || fail "no GPU: nvidia-smi lists none"
fi
echo "$gpus" | tr -d ' \t' | awk '{ all = all separator "\"" $0 "\""; separator = ", " }
  END { print "{\"name\": \"gpu\", \"addresses\": [" all "]}" }'
