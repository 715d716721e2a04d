#!/usr/bin/env bash
# The whole pipeline on a laptop: a model of 0.21M parameters learns to find a number in its context, from 64 tokens up,
# and is then asked for numbers hidden in prose that it has never seen. A quarter of an hour on two cores.
# Interrupted, the same command goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
make setup

# Train, evaluate and report in one go. Everything is in runs-out/demo: checkpoints, metrics.jsonl, needle.json, report.html.
.venv/bin/ringworld demo

# The same model, asked for something else: contexts twice as long as it was trained on.
.venv/bin/ringworld evaluate needle --model runs-out/demo --lengths 8192,16384 --depths 5 --rounds 2 --out runs-out/demo-beyond

# And what it writes. It has read a few hundred essays' pages: expect rhythm, not sense.
.venv/bin/ringworld generate text --model runs-out/demo --prompt "The best way to" --max-tokens 48 --temperature 0.7
