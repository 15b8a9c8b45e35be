#!/usr/bin/env bash
# Trains the bundled base to full size on a GPU, in calls of at most ten minutes; the next call of the same command
# goes on where the last one stopped, as long as the folder of the state is still there:
#   timeout -s INT 580 bash benchmarks/gpu/toybox.sh [SECONDS OF TRAINING IN ALL] [FOLDER OF THE STATE]
# Needs torch, transformers, numpy, pillow, safetensors and diffusers (where it lacks: a wheel on PYTHONPATH). What is
# exported is copied to $OUT, where there is one. Afterwards, anywhere: put the weights into toybox/weights and run
#   python -m conceptry.toybox.evaluate --json
set -euo pipefail
seconds=${1:-1500}
state=${2:-.runs/toybox-gpu}
make --silent links
export PYTHONPATH=.links${PYTHONPATH:+:$PYTHONPATH}
keep() { if [ -n "${OUT:-}" ] && [ -d "$state/weights" ]; then cp -r "$state/weights" "$OUT/"; fi; }
trap keep EXIT
mkdir -p "$state"
python3 -m conceptry.toybox.train all --device cuda --seconds "$seconds" --out "$state"
