#!/usr/bin/env bash
# Builds, tests and measures on a machine with a GPU. It uses the interpreter as it is: it installs nothing and needs no
# network.
#
#   usage: [VARIABLE=...] tools/gpu.sh [stage ...]          without a stage: all of them, in this order
#
#   build      build the libraries in place, for the GPUs here; then call every mode once and print its error
#   test       pytest -m gpu: tests/cuda/test_cuda.py first and alone, then the ops on half of the cores, then wae.deploy
#              and training
#   ops        benchmarks of single ops, one arithmetic mode after the other
#   networks   benchmarks of complete networks, one process for each network and batch, and of training steps
#   report     the tables of README and docs, from benches/results
#   sanitize   compute-sanitizer's four tools on small launches of all kernels
#   triton     the Triton backend: its op tests, and tune() on two shapes
#   profile    Nsight Compute on one launch of each kernel, and the compiler's report of resources
#
#   OUT        folder for summary.txt, a log of each step and a copy of the benchmarks' result file (gpu-results)
#   PYTHON     the interpreter, with torch, torchvision and the tests' packages (python3); what it lacks is printed first
#   LIMIT      seconds for everything together (0: no limit); each step has a limit of its own
#   WORKERS    processes for the op tests (half of the cores, at most 8), if pytest-xdist is installed; 1 if a GPU is in
#              exclusive-process mode
#   NETWORKS   what "networks" runs, in this order, such as "ResNet50-1 VGG16-32" (all networks with all batches)
#   WITHOUT_GPU=1  continue although torch sees no GPU: to try this script
#
# If a step fails or runs out of time, that is noted, with the tests that failed by then, and the next one starts.
# Benchmarks are kept case by case in benches/results. By the steps' limits "build test", "ops report" and "networks
# report" take at most 16, 10 and 22 minutes. If you have less time, set LIMIT, and run the networks in parts with
# NETWORKS. The exit status is the number of failed steps.
#
# If the machine has no C++ compiler, build on another Linux machine on x86-64 that has the CUDA toolkit:
#   FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 python setup.py build_ext --inplace
# and copy wae_kernels/*.so: they load with every torch from 2.10 on that has the same major version of CUDA.

set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 99

STAGES=(build test ops networks report sanitize triton profile)
ALL_NETWORKS=(VGG16-1 ResNet50-1 VGG16-32 ResNet50-32 VGG16-256 ResNet50-256 VGG16-8 ResNet50-8 VGG16-128 ResNet50-128)

refuse() {
  echo "$1" >&2
  exit 99
}

# one_of WHAT NAME KNOWN...: refuses a NAME that is not one of KNOWN
one_of() {
  local what=$1 name=$2 known
  shift 2
  for known; do
    [ "$name" != "$known" ] || return 0
  done
  refuse "no $what $name; there are: $*"
}

# All settings are checked before anything is built or run.
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-0}
CORES=$(getconf _NPROCESSORS_ONLN)
half=$(((CORES + 1) / 2))
WORKERS=${WORKERS:-$((half > 8 ? 8 : half))}
NETWORKS=${NETWORKS:-${ALL_NETWORKS[*]}}
[ $# -gt 0 ] || set -- "${STAGES[@]}"
for stage; do one_of stage "$stage" "${STAGES[@]}"; done
for network in $NETWORKS; do one_of network "$network" "${ALL_NETWORKS[@]}"; done
for name in LIMIT WORKERS; do
  case ${!name} in
    *[!0-9]*) refuse "$name must be a whole number, got ${!name}" ;;
  esac
done
command -v "$PYTHON" >/dev/null || refuse "PYTHON: there is no program $PYTHON"
OUT=$(mkdir -p "${OUT:-gpu-results}" && cd "${OUT:-gpu-results}" && pwd) || exit 99
FAILED=0
SECONDS=0 # bash increments it
BEGAN=$(date +%s)

export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PIP_NO_INDEX=1 HF_HUB_OFFLINE=1 # nothing may use the network
export PATH="$PATH${CUDA_HOME:+:$CUDA_HOME/bin}:/usr/local/cuda/bin" # where cuobjdump, compute-sanitizer and ncu may be
while IFS= read -r program; do # Nsight Compute has folders of its own, one for each version; newer ones come first
  export PATH="$PATH:$(dirname "$program")"
done < <(ls -d ${CUDA_HOME:+"$CUDA_HOME"/nsight-compute-*/ncu} /usr/local/cuda/nsight-compute-*/ncu \
  /opt/nvidia/nsight-compute/*/ncu /usr/local/NVIDIA-Nsight-Compute*/ncu 2>/dev/null | sort -rV)
if [ ! -w "${HOME:-}" ]; then # as in some containers; Triton and others keep caches there
  export HOME="$OUT/home"
  mkdir -p "$HOME"
fi

say() { echo "$@" | tee -a "$OUT/summary.txt"; }
indented() { sed 's/^/        /' | tee -a "$OUT/summary.txt"; }
has() { "$PYTHON" -c "import $1" >/dev/null 2>&1; }

# step NAME SECONDS COMMAND...: runs COMMAND with its own log.
step() {
  local name=$1 limit=$2 log="$OUT/$1.log" began=$SECONDS code left
  shift 2
  if [ "$LIMIT" -gt 0 ]; then
    left=$((LIMIT - SECONDS))
    if [ "$left" -lt 15 ]; then
      say "----  $name: no time left"
      return 1
    fi
    [ "$limit" -le "$left" ] || limit=$left
  fi
  # ended by Ctrl-C, because pytest then reports what has failed so far
  timeout --signal=INT --kill-after=20 "$limit" "$@" >"$log" 2>&1
  code=$?
  case $code in
    0) say "ok    $name ($((SECONDS - began)) s)" ;;
    124 | 137) say "TIME  $name (over $limit s)" ;;
    *) say "FAIL  $name (status $code, $((SECONDS - began)) s)" ;;
  esac
  grep -hE '^(E  |FAILED|ERROR|RESULT|=+ .*(passed|failed|skipped|error).*=+)|Error:' "$log" | cut -c1-200 | tail -n 60 | indented
  if [ "$code" -ne 0 ]; then
    FAILED=$((FAILED + 1))
    tail -n 6 "$log" | cut -c1-200 | indented
  fi
  return "$code"
}

# tests NAME SECONDS WORKERS ARGUMENT...
tests() {
  local name=$1 limit=$2 workers=$3
  shift 3
  # Warnings are not errors here: another version of torch has other warnings, which say nothing about the kernels.
  local options=(-m pytest -p no:cacheprovider -W default --continue-on-collection-errors --tb=short -rfE -m gpu)
  options+=(-o faulthandler_timeout=$((limit / 2))) # the log says where a test hangs before the step's time is over
  # a hanging kernel cannot be interrupted: only this method ends its process
  has pytest_timeout && options+=(--timeout=$((limit * 3 / 4)) --timeout-method=thread)
  if [ "$workers" -gt 1 ] && has xdist; then options+=(-n "$workers" --dist worksteal); fi
  step "$name" "$limit" "$PYTHON" "${options[@]}" "$@"
}

# benchmark NAME SECONDS ARGUMENT...
benchmark() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$PYTHON" -m pytest -p no:cacheprovider -q --tb=short -rfE -m gpu --keep benches/results "$@"
  # the machine may be gone before anybody looks into its working tree
  find benches/results -maxdepth 1 -name '*.json' -newermt "@$BEGAN" -exec cp {} "$OUT" \;
}

# ---------------------------------------------------------------------------------------------------- stages

build() {
  local capabilities
  capabilities=$("$PYTHON" -c '
from torch.cuda import device_count, get_device_capability
print(*{"{}.{}".format(*get_device_capability(i)) for i in range(device_count())})' 2>/dev/null)
  step build 240 env FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="${capabilities:-9.0}" MAX_JOBS="$CORES" \
    "$PYTHON" setup.py build_ext --inplace
  step first_calls 120 "$PYTHON" tools/gpu/first_calls.py
}

run_tests() {
  tests test_cuda 120 1 tests/cuda/test_cuda.py
  tests test_ops 200 "$WORKERS" -k "not triton" tests/kernels
  tests test_deployed 160 1 tests/app/inference/test_deployed.py # torch.compile tunes each layer, twice
  tests test_training 120 1 tests/app/training/test_on_a_gpu.py tests/app/experiments/acceleration/test_networks.py
}

ops() {
  local precision
  for precision in float16:200 tf32:130 bfloat16:110 float32:90; do
    benchmark "ops_${precision%:*}" "${precision#*:}" benches/bench_ops.py -k "cuda-${precision%:*}" \
      --seconds 0.5 --case-seconds 12
  done
}

networks() {
  local network
  for network in $NETWORKS; do
    benchmark "network_$network" 110 "benches/bench_classifiers.py::bench_end_to_end[${network/-/-cuda-tf32-}]" \
      --seconds 2.5 --case-seconds 45
  done
  benchmark training 120 benches/bench_classifiers.py -k "training_step and cuda" --seconds 2.5 --case-seconds 30
}

report() { step report 60 "$PYTHON" -m benches.report; }

sanitize() {
  local tool options
  if ! command -v compute-sanitizer >/dev/null; then
    say "----  sanitize: no compute-sanitizer"
    return
  fi
  for tool in memcheck racecheck synccheck initcheck; do
    options=(--tool "$tool" --error-exitcode 9)
    # only our kernels; but initcheck would take memory that an unwatched kernel wrote (torch's randn) for uninitialised
    [ "$tool" = initcheck ] || options+=(--kernel-name kns=wae)
    # without torch's cache every tensor is its own allocation, whose end memcheck sees
    step "sanitize_$tool" 240 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer "${options[@]}" \
      "$PYTHON" tools/gpu/small_launches.py
    grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY' "$OUT/sanitize_$tool.log" | indented
  done
}

triton() {
  tests triton_ops 400 "$WORKERS" -k triton tests/kernels # some 200 variants are compiled, seconds each
  step triton_tune 150 env WAE_TRITON_TILES="$OUT/triton_tiles.json" "$PYTHON" tools/gpu/tune.py
}

profile() {
  if command -v cuobjdump >/dev/null; then
    step resources 30 cuobjdump --dump-resource-usage wae_kernels/_C_cuda.abi3.so
  fi
  if ! command -v ncu >/dev/null; then
    say "----  profile: no ncu"
    return
  fi
  # clocks stay as they are; for each batch two forward launches, and two for each of the two backward passes
  step profile 240 ncu --set full --clock-control none --import-source no -k 'regex:encode_kernel|decode_kernel|backward_kernel|reduce_partials' \
    --launch-count 12 "$PYTHON" tools/gpu/one_launch.py
  grep -hE ', Context [0-9]+, Stream|Duration|Throughput|Achieved Occupancy|Registers Per|Executed Ipc Active' \
    "$OUT/profile.log" | indented
}

# ------------------------------------------------------------------------------------------------------ main

if ! "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "torch sees no GPU here (PYTHON=$PYTHON)" >&2
  [ -n "${WITHOUT_GPU:-}" ] || exit 99
fi
say "$(date -u +%FT%TZ) $*; $CORES cores; $("$PYTHON" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)')"
if command -v nvidia-smi >/dev/null; then
  nvidia-smi 2>&1 | indented
  if [[ $WORKERS -gt 1 && $(nvidia-smi --query-gpu=compute_mode --format=csv,noheader 2>&1) == *Exclusive* ]]; then
    say "----  a GPU is in exclusive-process mode, in which only one process can use it: WORKERS=1, not $WORKERS"
    WORKERS=1
  fi
fi
lacks=$("$PYTHON" -c 'import sys; from importlib.util import find_spec; print(*(m for m in sys.argv[1:] if not find_spec(m)))' \
  torchvision safetensors rich pytest hypothesis pytest_benchmark matplotlib)
[ -z "$lacks" ] || say "----  $PYTHON lacks $lacks: the tests and benchmarks that import them will fail"
for stage; do
  case $stage in
    build) build ;;
    test) run_tests ;;
    ops) ops ;;
    networks) networks ;;
    report) report ;;
    sanitize) sanitize ;;
    triton) triton ;;
    profile) profile ;;
  esac
done
say "failed steps: $FAILED; $SECONDS s; logs in $OUT"
exit $((FAILED > 98 ? 98 : FAILED))
