#!/usr/bin/env bash
# nano-text, taken on to 64K tokens: about an hour, and as long again for the questions, so it is made to be stopped and started again.
# To 16K every stage doubles the length and the RoPE theta with it; a short stage ends when its needles are found, a long one after its steps.
# Then short rows with a gap in their positions teach the distance of 64K and beyond, and a few rows of 32K and 64K follow.
set -euo pipefail
cd "$(dirname "$0")/.."
make setup

.venv/bin/ringworld train nano-text-long --out runs-out/nano-text-long

# What it learned (to 64K) and what it never saw (128K). The results so far are kept: this too can be stopped.
.venv/bin/ringworld evaluate needle --model runs-out/nano-text-long \
  --lengths 4096,8192,16384,32768,65536,131072 --depths 5 --rounds 2 --out runs-out/nano-text-long/needle
