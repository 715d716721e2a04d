#!/usr/bin/env bash
# The whole pipeline on a laptop: a model of 0.21M parameters learns to find a number in its context, from 64 tokens up,
# and is then asked for numbers hidden in prose that it has never seen. A quarter of an hour on two cores.
# Interrupted, the same command goes on where it stopped. It also goes on from what `make demo` began, with
# RUN=runs-out/demo/nano-text.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=${RUN:-runs-out/nano-text}
make setup

# Everything is in one folder: checkpoints, metrics.jsonl, needle.json, report.html.
.venv/bin/ringworld train nano-text --out "$RUN"

# Up to what it was trained on, and twice as far.
.venv/bin/ringworld evaluate needle --model "$RUN" --lengths 256,512,1024,2048,4096,8192,16384 --depths 5 --rounds 4 --out "$RUN"
.venv/bin/python - "$RUN" <<'PYTHON'
import sys
from pathlib import Path

from ringworld.evaluation.report import write_report

print("report:", write_report(Path(sys.argv[1])))
PYTHON

# And what it writes. It has read a few hundred essays' pages: expect rhythm, not sense.
.venv/bin/ringworld generate text --model "$RUN" --prompt "The best way to" --max-tokens 48 --temperature 0.7
