// Tests of the emulator: correct results, and that each kind of fault is detected. Each kernel here is correct, or wrong in
// one place.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../simt.h"

namespace looplm::cuda {
namespace {

int failures = 0, cases = 0;

void claim(const std::string& what, bool holds, const std::string& detail) {
  ++cases;
  if (!holds) ++failures;
  std::printf(holds ? "ok %s (%s)\n" : "not ok %s: %s\n", what.c_str(), detail.c_str());
}

// Claims that a launch ended with an error that contains `part`. The next launch must work again.
void found(const std::string& what, cudaError_t status, const std::string& part) {
  const std::string message = status == cudaSuccess ? "no fault was found" : cudaGetErrorString(status);
  claim(what, status != cudaSuccess && message.find(part) != std::string::npos, message);
}

enum class Fault {
  none,
  missing_barrier,
  barrier_in_a_branch,
  two_barriers,
  ended_before_barrier,
  wrong_lane,
  lane_outside_mask,
  other_masks,
  shuffle_in_a_branch,
  tile_edge,
  out_of_bounds,
  negative_index,
  neighbouring_array,
  uninitialised,
  misaligned,
  missing_wait,
  missing_barrier_after_wait,
  overwritten_too_early,
  missing_syncwarp,
  block_without_barrier,
  block_ends_early,
  two_grid_barriers,
  one_round_too_few,
};

constexpr int tile = 32, pitch = tile + 1;

// out [n, m] = the transpose of in [m, n] times the sum of the input's row. Tiles go through shared memory; one warp per row.
template <Fault fault>
__global__ void transpose(int m, int n, const float* in, float* out) {
  SHARED_ARRAY(float, part, tile* pitch);
  SHARED_ARRAY(float, sums, tile);
  const int x = int(threadIdx.x) % tile, rows = int(blockDim.x) / tile, first_row = int(threadIdx.x) / tile;
  const int row0 = int(blockIdx.x) * tile;
  if (fault == Fault::ended_before_barrier && threadIdx.x == 40) return;
  for (int column0 = 0; column0 < n; column0 += tile) {
    for (int r = first_row; r < tile; r += rows) {
      const bool inside = row0 + r < m && (fault == Fault::tile_edge ? column0 + x <= n : column0 + x < n);
      if (fault != Fault::uninitialised || r < tile - 1)
        part[r * pitch + x] = inside ? in[int64_t(row0 + r) * n + column0 + x] : 0.0f;
    }
    if (fault != Fault::missing_barrier) {
      if (fault == Fault::two_barriers) {
        if (threadIdx.x < 64) __syncthreads();
        else __syncthreads();
      } else {
        __syncthreads();
      }
    }
    for (int r = tile - 1 - first_row; r >= 0; r -= rows) {  // reads a row that another warp has loaded
      float sum = part[r * pitch + x];
      if (fault == Fault::wrong_lane) {
        // only lane 0 gets the whole sum
        for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(full_warp, sum, unsigned(d));
      } else if (fault == Fault::lane_outside_mask) {
        if (x < 16) sum = __shfl_sync(0xFFFFu, sum, 20);
      } else if (fault == Fault::other_masks) {
        sum = __shfl_xor_sync(x == 5 ? 0xFFFFFFFEu : full_warp, sum, 1);
      } else if (fault == Fault::shuffle_in_a_branch) {
        if (x != 7) sum = __shfl_xor_sync(full_warp, sum, 1);
      } else {
        sum = warp_sum(sum);
      }
      if (x == 31) sums[r] = sum;
    }
    __syncthreads();
    for (int c = first_row; c < tile; c += rows)
      if (column0 + c < n && row0 + x < m) {
        const int at = fault == Fault::out_of_bounds        ? tile * pitch + x
                       : fault == Fault::negative_index     ? x - 1
                       : fault == Fault::neighbouring_array ? tile * pitch
                                                            : x * pitch + c;
        float value = part[at];
        if (fault == Fault::misaligned) value = load<float>(&in[0]) + float4(shared_cast<float4>(part + 1)[0]).x;
        out[int64_t(column0 + c) * m + row0 + x] = value * float(sums[x]);
      }
    if (fault == Fault::barrier_in_a_branch && column0 + tile >= n) {
      if (threadIdx.x < 64) __syncthreads();
    } else if (fault != Fault::overwritten_too_early) {
      __syncthreads();
    }
  }
}

// out[i] = in[i] with each run of 256 reversed, through cp.async.
template <Fault fault>
__global__ void reverse(const float* in, float* out) {
  SHARED_ARRAY(float, part, 256);
  const int i = int(threadIdx.x);
  copy_async<16>(part + 4 * i, in + 256 * blockIdx.x + 4 * i);
  copy_async_commit();
  if (fault != Fault::missing_wait) copy_async_wait<0>();
  if (fault != Fault::missing_barrier_after_wait) __syncthreads();
  for (int k = 0; k < 4; ++k) out[256 * blockIdx.x + 4 * i + k] = part[255 - 4 * i - k];
}

template <Fault fault>
__global__ void neighbours(int* out) {
  SHARED_ARRAY(int, part, 32);
  part[threadIdx.x] = int(threadIdx.x);
  if (fault != Fault::missing_syncwarp) __syncwarp();
  out[threadIdx.x] = part[31 - int(threadIdx.x)];
}

constexpr int m = 45, n = 70;

template <Fault fault>
cudaError_t run_transpose(std::vector<float>& out) {
  std::vector<float> in(m * n + 1);
  for (int i = 0; i < m * n; ++i) in[size_t(i)] = float(i % 13 - 4);
  in[m * n] = 1000;
  out.assign(m * n, NAN);
  return launch(transpose<fault>, (m + tile - 1) / tile, 128, 0, nullptr, m, n, in.data(), out.data());
}

std::vector<float> expected_transpose() {
  std::vector<float> out(m * n);
  const auto in = [](int r, int c) { return float((r * n + c) % 13 - 4); };
  for (int r = 0; r < m; ++r)
    for (int c = 0; c < n; ++c) {
      float sum = 0;
      for (int k = c / tile * tile; k < n && k < (c / tile + 1) * tile; ++k) sum += in(r, k);
      out[size_t(c * m + r)] = in(r, c) * sum;
    }
  return out;
}

template <Fault fault>
void transpose_finds(const std::string& what, const std::string& part) {
  std::vector<float> out;
  found(what, run_transpose<fault>(out), part);
}
// Faults that only a comparison of the results can detect.
template <Fault fault>
void transpose_differs(const std::string& what) {
  std::vector<float> out;
  const cudaError_t status = run_transpose<fault>(out);
  claim(what, status == cudaSuccess && out != expected_transpose(), "the result is another");
}

template <Fault fault>
cudaError_t run_reverse(bool* right) {
  std::vector<float> in(1024), out(1024, NAN);
  for (size_t i = 0; i < 1024; ++i) in[i] = float(i);
  const cudaError_t status = launch(reverse<fault>, 4, 64, 0, nullptr, in.data(), out.data());
  *right = true;
  for (size_t i = 0; i < 1024; ++i) *right = *right && out[i] == float(i / 256 * 256 + 255 - i % 256);
  return status;
}

// c [16, 8] = a [16, 16] · b [16, 8] by one warp; b is stored as [n][k] or [k][n].
template <bool k_major>
__global__ void product(const bf16* a, const bf16* b, float* c) {
  SHARED_ARRAY(bf16, a_tile, 16 * 16);
  SHARED_ARRAY(bf16, b_tile, 16 * 8);
  const int lane = lane_id();
  copy_async(a_tile + 8 * lane, a + 8 * lane);
  if (lane < 16) copy_async(b_tile + 8 * lane, b + 8 * lane);
  copy_async_commit();
  copy_async_wait<0>();
  __syncwarp();
  uint32_t a_part[4], b_part[2];
  float sum[4] = {1, 1, 1, 1};
  load_matrix(a_part, a_tile + (lane % 16) * 16 + lane / 16 * 8);
  if (k_major) load_matrix(b_part, b_tile + (lane % 8) * 16 + lane / 8 % 2 * 8);
  else load_matrix_transposed(b_part, b_tile + (lane % 16) * 8);
  mma_bf16(sum, a_part, b_part[0], b_part[1]);
  const int row = lane / 4, column = 2 * (lane % 4);
  store(c + row * 8 + column, float2{sum[0], sum[1]});
  store(c + (row + 8) * 8 + column, float2{sum[2], sum[3]});
}

template <bool k_major>
void product_is_right() {
  std::vector<bf16> a(256), b(128);
  std::vector<float> c(128, NAN);
  for (int i = 0; i < 256; ++i) a[size_t(i)] = to_bf16(float(i % 7 - 3));
  for (int i = 0; i < 128; ++i) b[size_t(i)] = to_bf16(float(i % 5 - 2 + i / 100));
  const cudaError_t status = launch(product<k_major>, 1, 32, 0, nullptr, a.data(), b.data(), c.data());
  bool right = status == cudaSuccess;
  for (size_t row = 0; row < 16; ++row)
    for (size_t column = 0; column < 8; ++column) {
      float sum = 1;
      for (size_t k = 0; k < 16; ++k) sum += to_float(a[row * 16 + k]) * to_float(b[k_major ? column * 16 + k : k * 8 + column]);
      right = right && c[row * 8 + column] == sum;
    }
  claim(std::string("load_matrix and mma") + (k_major ? "" : ", transposed"), right, cudaGetErrorString(status));
}

// Every block adds its number to a sum, waits for the others, and reads the sum; three times.
template <Fault fault>
__global__ void meet(unsigned* sums, unsigned* out) {
  if (fault == Fault::block_ends_early && blockIdx.x == 2) return;
  const int rounds = fault == Fault::one_round_too_few && blockIdx.x == 3 ? 2 : 3;
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x == 0) atomicAdd(sums + round, blockIdx.x + 1);
    if (fault == Fault::two_grid_barriers && blockIdx.x == 4) grid_barrier();
    else if (fault != Fault::block_without_barrier) grid_barrier();
    if (threadIdx.x == 0) out[blockIdx.x] = sums[round];
  }
}
template <Fault fault>
cudaError_t run_meet(bool* right, unsigned blocks = 6) {
  unsigned sums[3] = {};
  std::vector<unsigned> seen(blocks);
  const cudaError_t status = launch_cooperative(meet<fault>, blocks, 64, 0, nullptr, &sums[0], seen.data());
  *right = true;
  for (unsigned s : seen) *right = *right && s == blocks * (blocks + 1) / 2;
  return status;
}

// Warps 1 and up pass numbers to warp 0 through two named barriers.
__global__ void hand_over(int* out) {
  SHARED_ARRAY(int, slot, 96);
  for (int round = 0; round < 3; ++round) {
    if (warp_id() > 0) {
      if (round > 0) named_barrier(2, 128);
      slot[int(threadIdx.x) - 32] = round * 1000 + int(threadIdx.x);
      named_barrier_arrive(1, 128);
    } else {
      named_barrier(1, 128);
      for (int i = lane_id(); i < 96; i += 32) out[round * 96 + i] = slot[i];
      if (round < 2) named_barrier_arrive(2, 128);
    }
  }
}

__global__ void count(int* out) {
  SHARED_ARRAY(int, counters, 4);
  if (threadIdx.x < 4) counters[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(counters + threadIdx.x % 4, 1);
  __syncthreads();
  if (threadIdx.x < 4) out[threadIdx.x] = counters[threadIdx.x];
}

__global__ void votes(unsigned* out) {
  const unsigned lane = unsigned(lane_id());
  const unsigned odd = __ballot_sync(full_warp, lane % 2 == 1);
  const int up = __shfl_up_sync(full_warp, int(lane), 3), down = __shfl_down_sync(full_warp, int(lane), 3, 8);
  const unsigned half = lane < 16 ? __ballot_sync(0xFFFFu, true) : __ballot_sync(0xFFFF0000u, lane == 20);
  out[lane] = odd;
  out[32 + lane] = unsigned(up * 100 + down);
  out[64 + lane] = half;
  out[96 + lane] = unsigned(__any_sync(full_warp, lane == 3)) * 2 + unsigned(__all_sync(full_warp, lane < 31));
}

// Products and sums stay separate or are fused exactly as the code says; the compiler does not decide.
__global__ void rounding(float x, float y, float z, double w, float* out) {
  out[0] = __fmul_rn(x, y) - z;
  out[1] = __fadd_rn(x * y, -z);
  out[2] = fmaf(x, y, -z);
  out[3] = float(__dmul_rn(w, w) - (1 + 0x1p-29));
}

void results() {
  std::vector<float> out;
  claim("a tile through shared memory", run_transpose<Fault::none>(out) == cudaSuccess && out == expected_transpose(),
        "as expected");
  bool right = false;
  claim("cp.async", run_reverse<Fault::none>(&right) == cudaSuccess && right, "as expected");
  product_is_right<false>();
  product_is_right<true>();

  cudaError_t status = run_meet<Fault::none>(&right);
  claim("a cooperative launch", status == cudaSuccess && right, cudaGetErrorString(status));

  std::vector<int> handed(288, -1);
  status = launch(hand_over, 1, 128, 0, nullptr, handed.data());
  right = status == cudaSuccess;
  for (int i = 0; i < 288; ++i) right = right && handed[size_t(i)] == i / 96 * 1000 + i % 96 + 32;
  claim("named barriers", right, cudaGetErrorString(status));

  int counted[4] = {};
  status = launch(count, 1, 128, 0, nullptr, &counted[0]);
  claim("atomics in shared memory", status == cudaSuccess && counted[0] == 32 && counted[3] == 32, cudaGetErrorString(status));

  // x² = 1 + 2^-11 + 2^-24 lies between two floats, and w² = 1 + 2^-29 + 2^-60 between two doubles.
  float rounded[4];
  status = launch(rounding, 1, 1, 0, nullptr, 1 + 0x1p-12f, 1 + 0x1p-12f, 1 + 0x1p-11f, 1 + 0x1p-30, &rounded[0]);
  claim("products rounded by themselves and in an fma",
        status == cudaSuccess && rounded[0] == 0 && rounded[1] == 0 && rounded[2] == 0x1p-24f && rounded[3] == 0,
        cudaGetErrorString(status));

  unsigned voted[128];
  status = launch(votes, 1, 32, 0, nullptr, &voted[0]);
  right = status == cudaSuccess;
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned up = lane < 3 ? lane : lane - 3, down = lane % 8 < 5 ? lane + 3 : lane;
    right = right && voted[lane] == 0xAAAAAAAAu && voted[32 + lane] == up * 100 + down &&
            voted[64 + lane] == (lane < 16 ? 0xFFFFu : 1u << 20) && voted[96 + lane] == 2;
  }
  claim("votes and shuffles", right, cudaGetErrorString(status));

  cudaStream_t stream = nullptr;
  cudaStreamCreate(&stream);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  std::vector<float> from(4, 1), to(4, 0);
  cudaMemcpyAsync(to.data(), from.data(), 16, cudaMemcpyDeviceToDevice, stream);
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&executable, graph);
  const bool before = to[3] == 0;
  from[3] = 5;
  cudaGraphLaunch(executable, stream);
  claim("a captured stream", before && to[3] == 5, "done at the graph's launch");
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);

  // A replay uses the arguments of the recorded launch.
  std::vector<int> counted_twice(4, 0);
  int* argument = counted_twice.data();
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  launch(count, 1, 128, 0, stream, argument);
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&executable, graph);
  argument = nullptr;
  cudaGraphLaunch(executable, stream);
  claim("a captured launch", counted_twice[3] == 32, "keeps its arguments");
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);

  const auto ends_the_capture = [&](const char* what, auto ask) {
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    const cudaError_t asked = ask(), after = launch(count, 1, 128, 0, stream, counted_twice.data()),
                      end = cudaStreamEndCapture(stream, &graph);
    claim(std::string(what) + " while a stream is captured",
          asked == cudaErrorStreamCaptureUnsupported && after == cudaErrorStreamCaptureInvalidated &&
              end == cudaErrorStreamCaptureInvalidated && graph == nullptr,
          cudaGetErrorString(asked));
  };
  void* memory = nullptr;
  ends_the_capture("waiting for it", [&] { return cudaStreamSynchronize(stream); });
  ends_the_capture("an allocation", [&] { return cudaMalloc(&memory, 64); });
  ends_the_capture("an allocation ordered by it", [&] { return cudaMallocAsync(&memory, 64, stream); });
  ends_the_capture("a copy that waits", [&] { return cudaMemcpy(to.data(), from.data(), 16, cudaMemcpyDeviceToDevice); });
  cudaStreamDestroy(stream);
}

// Two copies from the same pinned memory, which is refilled after waiting for the first copy, or at once.
cudaError_t stage_twice(bool waits, char (&out)[2]) {
  cudaStream_t stream = nullptr;
  cudaEvent_t copied = nullptr;
  char *pinned = nullptr, *there = nullptr;
  cudaStreamCreate(&stream);
  cudaEventCreate(&copied);
  cudaMallocHost(reinterpret_cast<void**>(&pinned), 64);
  cudaMalloc(reinterpret_cast<void**>(&there), 128);
  cudaError_t status = cudaSuccess;
  for (int i = 0; i < 2; ++i) {
    std::memset(pinned, 5 + i, 64);
    cudaMemcpyAsync(there + 64 * i, pinned, 64, cudaMemcpyHostToDevice, stream);
    cudaEventRecord(copied, stream);
    if (waits) status = cudaEventSynchronize(copied);
  }
  if (!status) status = cudaStreamSynchronize(stream);
  cudaMemcpyAsync(pinned, there + 64, 64, cudaMemcpyDeviceToHost, stream);
  out[0] = pinned[0];
  cudaStreamSynchronize(stream);
  out[1] = pinned[0];
  cudaFree(there);
  cudaStreamDestroy(stream);
  cudaFreeHost(pinned);
  cudaEventDestroy(copied);
  return status;
}

void transfers() {
  char out[2] = {};
  claim("pinned memory filled again after its copy", stage_twice(true, out) == cudaSuccess, "works");
  claim("a copy to the host before it is waited for", out[0] != 6 && out[1] == 6, "is not there, and then is");
  found("pinned memory filled again too early", stage_twice(false, out), "changed while a copy from it");
}

void faults() {
  transpose_finds<Fault::missing_barrier>("a missing barrier", "shared memory");
  transpose_finds<Fault::overwritten_too_early>("a missing barrier before the next tile", "a race: shared memory");
  transpose_finds<Fault::barrier_in_a_branch>("a barrier in a branch", "is not reached by all of its threads");
  transpose_finds<Fault::two_barriers>("two barriers for one", "other threads wait in another one");
  transpose_finds<Fault::ended_before_barrier>("a thread that ends before a barrier", "is not reached by all of its threads");
  transpose_differs<Fault::wrong_lane>("a wrong lane in a shuffle");
  transpose_finds<Fault::lane_outside_mask>("a shuffle from a lane outside the mask", "does not take part");
  transpose_finds<Fault::other_masks>("different masks in a shuffle", "with the mask");
  transpose_finds<Fault::shuffle_in_a_branch>("a shuffle in a branch", "a shuffle at");
  transpose_differs<Fault::tile_edge>("an off-by-one tile edge");
  transpose_finds<Fault::out_of_bounds>("shared memory behind the end", "out of bounds");
  transpose_finds<Fault::negative_index>("shared memory before the beginning", "out of bounds");
  transpose_finds<Fault::neighbouring_array>("the next array", "out of bounds");
  transpose_finds<Fault::uninitialised>("shared memory that nothing wrote", "nothing has written");
  transpose_finds<Fault::misaligned>("a misaligned vector", "misaligned");
  bool right = false;
  found("a missing cp.async wait", run_reverse<Fault::missing_wait>(&right), "cp.async to it is under way");
  found("a missing barrier after cp.async", run_reverse<Fault::missing_barrier_after_wait>(&right), "shared memory read");
  std::vector<int> out(32);
  claim("__syncwarp", launch(neighbours<Fault::none>, 1, 32, 0, nullptr, out.data()) == cudaSuccess && out[0] == 31,
        "as expected");
  found("a missing __syncwarp", launch(neighbours<Fault::missing_syncwarp>, 1, 32, 0, nullptr, out.data()), "shared memory");
  found("a block that leaves a grid barrier out", run_meet<Fault::one_round_too_few>(&right),
        "is not reached by block (3, 0, 0), which has ended");
  found("a block that ends before the grid barrier", run_meet<Fault::block_ends_early>(&right),
        "is not reached by block (2, 0, 0), which has ended");
  found("two grid barriers for one", run_meet<Fault::two_grid_barriers>(&right), "other threads wait in another one");
  claim("no grid barrier", run_meet<Fault::block_without_barrier>(&right) == cudaSuccess && !right, "the result is another");
  found("more blocks than the device holds at once", run_meet<Fault::none>(&right, 129), "too many blocks in cooperative launch");
  unsigned sums[3] = {}, seen[6];
  found("a grid barrier without a cooperative launch", launch(meet<Fault::none>, 6, 64, 0, nullptr, &sums[0], &seen[0]),
        "not cooperative");
  found("too much shared memory", launch(neighbours<Fault::none>, 1, 32, 228 * 1024, nullptr, out.data()),
        "dynamic shared memory");
  found("too many threads", launch(neighbours<Fault::none>, 1, 1025, 0, nullptr, out.data()), "1025 threads");
  claim("a launch after faults", launch(neighbours<Fault::none>, 1, 32, 0, nullptr, out.data()) == cudaSuccess, "works");
}

}  // namespace
}  // namespace looplm::cuda

int main() {
  looplm::cuda::results();
  looplm::cuda::faults();
  looplm::cuda::transfers();
  std::printf("%d cases, %d failed\n", looplm::cuda::cases, looplm::cuda::failures);
  return looplm::cuda::failures > 0;
}
