#!/usr/bin/env bash
# Builds, tests and measures the CUDA backend on a machine with a GPU. Needs nvcc, cmake, g++, and make or ninja.
# - Runs the kernel tests against the float64 reference.
# - Times every kernel beside the peak rates of this chip, and the same work in PyTorch if python3 has torch.
# - Runs the engine's numerical tests and `npm run bench` if there is Node (in PATH, or NODE=program), node_modules, and a built
#   addon or npm to build one.
# Writes JSON and table.txt to the given folder (default build/gpu-results). The table names what was skipped. Exits with 1 if a test
# fails.
#   LOOPLM_CUDA_LIBRARY=file   Use this library and do not run nvcc. With the emulated library, SIZE=tiny and FILTER=string (part of
#                              the names of kernel tests), the script runs without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu-results}
mkdir -p "$out"
jobs=${JOBS:-$(nproc)}
size=${SIZE:-ouro}
table=$out/table.txt
: >"$table"
failed=0
say() { echo "$*" | tee -a "$table" >&2; }
# The rest of the script goes on without what has failed.
attempt() { "$@" || { failed=1 && say "failed: $*"; }; }

echo "== build" >&2
if [ -z "${LOOPLM_CUDA_LIBRARY:-}" ]; then
  JOBS=$jobs cuda/build.sh >&2
  export LOOPLM_CUDA_LIBRARY=$PWD/build/Release/looplm_cuda.so
fi
command -v make >/dev/null || export CMAKE_GENERATOR=${CMAKE_GENERATOR:-Ninja}
cmake -S . -B build/gpu -DCMAKE_BUILD_TYPE=Release >"$out/cmake.txt"
cmake --build build/gpu --parallel "$jobs" --target looplm_kernel_tests looplm_kernel_bench >>"$out/cmake.txt"

# PyTorch's packages bring cuBLASLt where no toolkit has put it into the loader's path.
known=$(ldconfig -p 2>/dev/null || true) # into a variable: a pipe that its reader leaves early counts as failed
if [ -z "${LOOPLM_CUBLASLT:-}" ] && [[ $known != *libcublasLt.so* ]]; then
  found=$(python3 -c 'import glob, nvidia; print(*(f for p in nvidia.__path__ for f in glob.glob(p + "/*/lib/libcublasLt.so.1?")))' 2>/dev/null || true)
  [ -z "$found" ] || export LOOPLM_CUBLASLT=${found%% *}
fi

echo "== kernel tests" >&2
kernel_tests() { # name of the output, then a variable for the environment
  echo "-- $1" >>"$table"
  env "$2" build/gpu/looplm_kernel_tests --backend "$LOOPLM_CUDA_LIBRARY" "${3:-}" >"$out/$1.txt" || failed=1
  grep -hE "^not ok|^# |tests failed" "$out/$1.txt" | tee -a "$table" || say "no result: see $out/$1.txt"
}
kernel_tests kernel-tests LOOPLM_CUDA_GEMM=default "${FILTER:-}"
kernel_tests kernel-tests-own-gemm LOOPLM_CUDA_GEMM=own gemm
kernel_tests kernel-tests-cublaslt LOOPLM_CUDA_GEMM=library gemm

echo "== kernels" >&2
bench() { # name of the output, then the options
  local name=$1 status=0
  shift
  build/gpu/looplm_kernel_bench --device cuda --size "$size" "$@" >"$out/$name.json" 2>"$out/$name.txt" || status=$?
  tee -a "$table" <"$out/$name.txt" >&2
  return $status
}
milliseconds=300
[ "$size" = ouro ] || milliseconds=1
attempt bench kernels-bf16 --dtype bf16 --milliseconds $milliseconds
attempt bench kernels-f32 --dtype f32 --milliseconds $milliseconds
LOOPLM_CUDA_GEMM=own attempt bench kernels-own-gemm --dtype bf16 --milliseconds $milliseconds --filter gemm
LOOPLM_CUDA_GEMM=own attempt bench kernels-own-head --dtype bf16 --milliseconds $milliseconds --filter head
# Times decoding without the one-token kernel, and without graphs. The results have the same bits.
for way in graph launches; do
  say "decoding by LOOPLM_CUDA_DECODE=$way"
  LOOPLM_CUDA_DECODE=$way attempt bench decode-$way --dtype bf16 --milliseconds $milliseconds --filter "decode rows"
done

echo "== PyTorch, the same work" >&2
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  attempt python3 cuda/torch_bench.py >"$out/torch.json"
  cat "$out/torch.json" >>"$table"
else
  say "PyTorch: python3 has no torch with a GPU"
fi

echo "== engine" >&2
node=${NODE:-$(command -v node || true)}
addon() { [ -e build/Release/looplm.node ] && [ -e dist/bench/main.js ]; }
if [ -n "$node" ] && [ -d node_modules ]; then
  addon || ! command -v npm >/dev/null || npm run build >"$out/npm.txt" 2>&1 || true
fi
if [ -z "$node" ]; then
  say "engine: no Node (NODE=path names one)"
elif ! [ -d node_modules ] || ! addon; then
  say "engine: node_modules, the addon or dist is not here (npm ci && npm run build, or carry them along)"
else
  if [ -d node_modules/vitest ] && [ "$size" = ouro ]; then
    LOOPLM_TEST_DEVICE=cuda "$node" node_modules/vitest/vitest.mjs run --config vitest.device.config.ts >"$out/engine-tests.txt" 2>&1 || failed=1
    tail -n 6 "$out/engine-tests.txt" | tee -a "$table"
  fi
  if [ "$size" = ouro ]; then
    attempt "$node" dist/bench/main.js --device cuda --json >"$out/bench.json"
  else
    attempt "$node" dist/src/cli/main.js info >"$out/info.txt"
  fi
fi
echo "written to $out" >&2
exit $failed
