#!/usr/bin/env bash
# Compiles the CUDA backend with nvcc to build/Release/looplm_cuda.so. The engine opens that file from the addon's folder.
# The library has machine code for compute capability 8.0 and 9.0, and PTX of 8.0 for all other chips.
# Warnings are errors. Only changed files are compiled. The output of ptxas is in build/cuda, one file per source.
# Variables: NVCC (the compiler), JOBS (parallel compilations), TARGETS (other chips).
set -euo pipefail
cd "$(dirname "$0")/.."
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
[ -x "$nvcc" ] || {
  echo "looplm: nvcc was not found in PATH or /usr/local/cuda/bin; install the CUDA toolkit 12.8 or later, or set NVCC to its path" >&2
  exit 1
}
objects=build/cuda
mkdir -p $objects build/Release
gencode=()
for target in ${TARGETS:-arch=compute_80,code=[sm_80,compute_80] arch=compute_90a,code=sm_90a}; do gencode+=(-gencode "$target"); done
settings="$nvcc ${gencode[*]}"
[ "$(cat $objects/settings 2>/dev/null)" = "$settings" ] || rm -f $objects/*.o
echo "$settings" >$objects/settings
export nvcc objects

compile() {
  local file=$1 object=$objects/$(basename "$1").o
  shift
  local newest
  newest=$(ls -t "$file" cuda/*.h native/*.h cuda/build.sh | head -n 1)
  [ "$object" -nt "$newest" ] && return
  local started=$SECONDS
  if "$nvcc" -std=c++20 -O3 --expt-relaxed-constexpr -Werror all-warnings -DLOOPLM_CUDA_NAME='"cuda"' \
    -Xcompiler -Wall,-Wextra,-Wno-missing-field-initializers,-Werror,-fPIC,-fvisibility=hidden -Xptxas -v "$@" -c "$file" -o "$object.new" >"$object.txt" 2>&1; then
    mv "$object.new" "$object"
    echo "$file: $((SECONDS - started)) s"
  else
    cat "$object.txt" >&2
    return 1
  fi
}
export -f compile
# the longest first
ls -S cuda/*.cu | xargs -P "${JOBS:-$(nproc)}" -I{} bash -c 'compile "$@"' _ {} "${gencode[@]}"
list=()
for file in cuda/*.cu; do list+=("$objects/$(basename "$file").o"); done
"$nvcc" -shared -cudart static -o build/Release/looplm_cuda.so "${list[@]}" -Xlinker --version-script=cuda/exports.map,--exclude-libs=ALL \
  -Xcompiler -static-libstdc++,-static-libgcc -ldl -lpthread
echo "build/Release/looplm_cuda.so: $(stat -c %s build/Release/looplm_cuda.so) bytes"
