#!/usr/bin/env bash
# Builds, tests and measures the CUDA backend on a machine with a GPU that has nvcc, cmake and g++ and need have nothing else: the kernel
# tests against the float64 reference, every kernel beside the roofs of this chip, PyTorch's time for the same work where python3 has torch,
# and, where Node and its packages are there, the numerical tests of the whole engine and `npm run bench`. Writes JSON and a short table to
# the folder that is given (default build/gpu-results).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu-results}
mkdir -p "$out"
jobs=${JOBS:-$(nproc)}

echo "== build" >&2
JOBS=$jobs cuda/build.sh >&2
cmake -S . -B build/gpu -DCMAKE_BUILD_TYPE=Release >"$out/cmake.txt"
cmake --build build/gpu --parallel "$jobs" --target looplm_kernel_tests looplm_kernel_bench >>"$out/cmake.txt"
export LOOPLM_CUDA_LIBRARY=$PWD/build/Release/looplm_cuda.so

echo "== kernel tests" >&2
build/gpu/looplm_kernel_tests --backend "$LOOPLM_CUDA_LIBRARY" >"$out/kernel-tests.txt" || true
LOOPLM_CUDA_GEMM=own build/gpu/looplm_kernel_tests --backend "$LOOPLM_CUDA_LIBRARY" gemm >"$out/kernel-tests-own-gemm.txt" || true
LOOPLM_CUDA_GEMM=library build/gpu/looplm_kernel_tests --backend "$LOOPLM_CUDA_LIBRARY" gemm >"$out/kernel-tests-cublaslt.txt" || true
tail -qn 2 "$out"/kernel-tests*.txt | tee "$out/table.txt"
grep -h "^not ok" "$out"/kernel-tests*.txt | tee -a "$out/table.txt" || true

echo "== kernels" >&2
for dtype in bf16 f32; do
  build/gpu/looplm_kernel_bench --device cuda --dtype $dtype >"$out/kernels-$dtype.json" 2> >(tee -a "$out/table.txt" >&2) || true
done
LOOPLM_CUDA_GEMM=own build/gpu/looplm_kernel_bench --device cuda --dtype bf16 --filter gemm >"$out/kernels-own-gemm.json" \
  2> >(tee -a "$out/table.txt" >&2) || true
# the same bits in other ways: what the graphs and the one kernel for a token are worth
for way in graph launches; do
  echo "decoding by LOOPLM_CUDA_DECODE=$way" | tee -a "$out/table.txt" >&2
  LOOPLM_CUDA_DECODE=$way build/gpu/looplm_kernel_bench --device cuda --dtype bf16 --filter "decode rows" >"$out/decode-$way.json" \
    2> >(tee -a "$out/table.txt" >&2) || true
done

if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  echo "== PyTorch, the same work" >&2
  python3 cuda/torch_bench.py | tee "$out/torch.json" || true
fi
if command -v node >/dev/null && [ -d node_modules ]; then
  echo "== engine" >&2
  npm run build >"$out/npm.txt" 2>&1
  npm run test:gpu >"$out/engine-tests.txt" 2>&1 || true
  tail -n 6 "$out/engine-tests.txt" | tee -a "$out/table.txt"
  npm run --silent bench -- --device cuda --json >"$out/bench.json" || true
fi
echo "written to $out" >&2
