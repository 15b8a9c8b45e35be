#!/usr/bin/env bash
# Trains the bundled base to full size on a GPU, in calls of at most ten minutes, each taking up the last one's state.
#   bash benchmarks/gpu/toybox.sh [SECONDS OF TRAINING IN ALL] [FOLDER OF THE STATE]
# The state is copied to $OUT (where there is one), so that a machine that is given back loses nothing; put it back
# into the folder before the next call. Then, on any machine:
#   python -m conceptry.toybox.evaluate --json
set -euo pipefail
seconds=${1:-1500}
state=${2:-.runs/toybox-gpu}
mkdir -p "$state"
python3 -m conceptry.toybox.train all --device cuda --seconds "$seconds" --out "$state"
if [ -n "${OUT:-}" ]; then cp -r "$state/weights" "$OUT/"; fi
