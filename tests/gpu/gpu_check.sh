#!/usr/bin/env bash
# Proves and measures Kvasir on a GPU: unattended, within eight minutes, from the folder that `cargo xtask gpu` makes.
#
# Each check is a process of its own with a time limit: one that fails or hangs hides no other. A table comes last; the
# same as JSON, with all that was measured, goes into the folder that OUT names, beside a log of all that was said.
#
#   OUT=results bash gpu_check.sh
#
#   KVASIR_GPU         the GPU's number, 0 unless set; `host` checks the script itself, on the kernels' host device
#   KVASIR_MODEL       the default model's file, for the checks that need it
#   GPU_CHECK_SECONDS  when no further check begins, 460 unless set
#   GPU_TEST_SECONDS   what one test may take, 90 unless set
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export KVASIR_GPU=${KVASIR_GPU:-0} KVASIR_TEST_DATA=$here/tests
out=${OUT:-$here/out}
deadline=$((SECONDS + ${GPU_CHECK_SECONDS:-460}))
test_seconds=${GPU_TEST_SECONDS:-90}
log=$out/gpu-check.log
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/numbers"
: > "$log"
: > "$work/verdicts"

# note NAME VERDICT SECONDS WORDS
note() {
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >> "$work/verdicts"
  printf '%-9s %6.1f s  %s\n' "$2" "$3" "$1"
}

# check NAME LIMIT COMMAND...: exit code 0 is ok, 3 says that it cannot be done here and why, anything else has failed.
check() {
  local name=$1 limit=$2 left=$((deadline - SECONDS)) begun=${EPOCHREALTIME/,/.} status verdict words
  shift 2
  if [ "$left" -lt 5 ]; then
    note "$name" "NOT RUN" 0 "the time was up"
    return
  fi
  if [ "$limit" -gt "$left" ]; then limit=$left; fi
  timeout --kill-after=5 "$limit" "$@" > "$work/said" 2>&1 < /dev/null
  status=$?
  words=$(grep -v '^ *$' "$work/said" | tail -n 1 | tr '\t' ' ' | cut -c1-200)
  case $status in
    0) verdict=ok words= ;;
    3) verdict="NOT HERE" ;;
    124 | 137) verdict="TIMED OUT" words="it took longer than $limit s" ;;
    *) verdict=FAILED words=$(grep -m1 -A1 -E 'panicked at|error' "$work/said" | tr '\n\t' '  ' | cut -c1-300) ;;
  esac
  { printf '\n== %s: %s (%s)\n' "$name" "$verdict" "$*"; cat "$work/said"; } >> "$log"
  note "$name" "$verdict" "$(python3 -c "print(${EPOCHREALTIME/,/.} - $begun)")" "$words"
}

# Where Python's packages and the system keep the libraries that the programs need beside the driver's.
library_folders() {
  python3 - <<'PYTHON'
import glob, sys
print(":".join(sorted(folder for path in sys.path for folder in glob.glob(path + "/nvidia/*/lib"))))
PYTHON
}

unpack() {
  if [ -f "$here/programs.tar.xz" ]; then
    python3 -m tarfile -e "$here/programs.tar.xz" "$here" && rm "$here/programs.tar.xz"
  fi
}

# The script goes on without them: every check then says what is missing, and so does this.
libraries_are_there() {
  local missing
  missing=$(ldd "$here/kvasir" | awk '/not found/ { print $1 }' | sort -u | tr '\n' ' ')
  if [ -n "$missing" ]; then
    echo "missing: $missing- libcuda.so.1 comes with the driver, the others with the Python packages nvidia-cublas," \
      "nvidia-curand, nvidia-cuda-nvrtc and nvidia-nccl-cu13, which PyTorch brings"
    return 1
  fi
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || [ "$KVASIR_GPU" = host ]
}

# tests PROGRAM FILTER...: every test of a program, each in a process of its own.
tests() {
  local program=$1 name
  shift
  local names
  names=$("$here/$program" --list --format terse "$@" 2>> "$log" | sed -n 's/: test$//p')
  if [ -z "$names" ]; then
    note "$program" FAILED 0 "it lists no tests: see the log"
    return
  fi
  for name in $names; do
    check "$program $name" "$test_seconds" "$here/$program" --exact "$name" --nocapture
  done
}

# perplexity NAME MODEL CONTEXT FLAGS...: what a text comes to through real processes; the digest is over all logprobs' bits.
perplexity() {
  local name=$1 model=$2 context=$3
  shift 3
  "$here/kvasir" perplexity --json --model "$model" --file "$work/text" --context "$context" "$@" \
    > "$work/numbers/perplexity-$name.json"
}

# same_bits MODEL CONTEXT WORKERS: the exact mode on the GPU says what the CPU says.
same_bits() {
  local digest='import json, sys; print(json.load(open(sys.argv[1]))["digest"])' cpu gpu
  perplexity cpu "$1" "$2" --threads "$(nproc)" || return 1
  perplexity "gpu-$3" "$1" "$2" --workers "$3" "${gpu_flags[@]}" || return 1
  cpu=$(python3 -c "$digest" "$work/numbers/perplexity-cpu.json")
  gpu=$(python3 -c "$digest" "$work/numbers/perplexity-gpu-$3.json")
  echo "cpu $cpu, gpu with $3 workers $gpu"
  [ "$cpu" = "$gpu" ] || { echo "error: the bits differ"; return 1; }
}

default_model_or_not_here() {
  if [ ! -f "${KVASIR_MODEL:-}" ]; then
    echo "KVASIR_MODEL names no file"
    exit 3
  fi
  "$@"
}

measure() {
  "$here/gpu_bench" "$1" "$work/numbers/$1.json"
}

torch() {
  python3 -c 'import torch' 2> /dev/null || { echo "python3 has no torch"; exit 3; }
  local device=cuda:$KVASIR_GPU
  if [ "$KVASIR_GPU" = host ]; then device=cpu; fi
  python3 "$here/torch_times.py" --device "$device" --json "$work/numbers/torch.json"
}

# The verdicts and all numbers as one JSON object, and as a table.
report() {
  python3 - "$work" "$out/gpu-check.json" <<'PYTHON'
import json, os, sys
work, target = sys.argv[1:]
checks = []
for line in open(work + "/verdicts"):
    name, verdict, seconds, words = line.rstrip("\n").split("\t")
    checks.append({"name": name, "verdict": verdict, "seconds": round(float(seconds), 2), "words": words})
numbers = {}
for file in sorted(os.listdir(work + "/numbers")):
    try:
        numbers[file.removesuffix(".json")] = json.load(open(f"{work}/numbers/{file}"))
    except ValueError:
        pass
json.dump({"gpu": os.environ["KVASIR_GPU"], "checks": checks, "numbers": numbers}, open(target, "w"), indent=1)
bad = [check for check in checks if check["verdict"] != "ok"]
print(f"\n{len(checks) - len(bad)} of {len(checks)} checks passed")
for check in bad:
    print(f"{check['verdict']:<9} {check['name']}: {check['words']}")
for name, values in numbers.items():
    if name.startswith("perplexity"):
        continue
    for number, value in values.items():
        if isinstance(value, float):
            print(f"{name:<14} {number:<34} {value:>16.3f}")
PYTHON
  ! grep -q -P '\t(FAILED|TIMED OUT|NOT RUN)\t' "$work/verdicts"
}

unpack
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}:$(library_folders):/usr/local/nvidia/lib64:/usr/local/cuda/lib64
gpu_flags=(--device "cuda:$KVASIR_GPU" --gpu-mode exact)
if [ "$KVASIR_GPU" = host ]; then gpu_flags=(--backend canonical); fi
head -c 3000 "$here/gpu_check.sh" > "$work/text"
export -f libraries_are_there perplexity same_bits default_model_or_not_here measure torch
export here work

# `timeout` starts programs, not functions; an array cannot be exported, so its words are set again.
in_bash() { check "$1" "$2" bash -c "gpu_flags=(${gpu_flags[*]}); ${*:3}"; }

in_bash "libraries and driver" 20 libraries_are_there
tests worker_tests gpu::tests::
tests gpu_group
tests gpu_parity
tests gpu_fast
check "a small model" 20 "$here/gpu_bench" model "$work/model.gguf"
in_bash "same bits through processes, 1 worker" 60 same_bits "$work/model.gguf" 256 1
in_bash "same bits through processes, 2 workers on one GPU" 60 same_bits "$work/model.gguf" 256 2
in_bash "same bits of the default model" 90 default_model_or_not_here same_bits '"$KVASIR_MODEL"' 256 1
NCCL_MULTI_RANK_GPU_ENABLE=1 tests gpu_group two_ranks
for name in roofline attention decode-exact decode-fast; do
  in_bash "measure $name" 150 measure "$name"
done
in_bash "measure torch" 120 torch
report
