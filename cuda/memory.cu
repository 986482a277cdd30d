// Contexts and memory: the driver's stream-ordered pool, pinned staging memory for copies, and errors that say what was
// requested and what is free.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "context.h"
#include "cublaslt.h"

namespace looplm::cuda {

int fail(Context& c, const std::string& message) {
  c.error = message;
  return 1;
}

int check(Context& c, cudaError_t status, const char* operation) {
  if (status == cudaSuccess) return 0;
  cudaGetLastError();  // clears an error that is not sticky
  fail(c, std::string(operation) + ": " + cudaGetErrorString(status));
  return status == cudaErrorMemoryAllocation ? int(LOOP_OUT_OF_MEMORY) : 1;
}

int refuse_dtype(Context& c, const char* operation, LoopDType dt) {
  return fail(c, std::string(operation) + ": device cuda computes in float32 and bfloat16, not in " + loop_dtype_name(dt));
}

// While calls are recorded, refuses those that would wait or allocate, because CUDA would invalidate the whole recording.
int refuse_recorded(Context& c, const char* operation) {
  return c.recording ? fail(c, std::string(operation) + " while calls are recorded") : 0;
}

int wait(Context& c, const char* operation) {
  if (int status = refuse_recorded(c, operation)) return status;
  if (int status = check(c, cudaStreamSynchronize(c.stream), operation)) return status;
  if (!c.kernel_fault->raised) return 0;
  const KernelFault found = *c.kernel_fault;
  c.kernel_fault->raised = 0;
  return fail(c, std::string("a kernel before ") + operation + " got index " + std::to_string(found.value) + ", outside 0 .. " +
                     std::to_string(found.limit - 1) + ": its results are invalid");
}

namespace {

constexpr size_t staging_bytes = 4 << 20;
thread_local std::string open_error = "no context";

std::string gib(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GiB", double(bytes) / double(1 << 30));
  return text;
}

constexpr int least_capability = 8;  // major compute capability that the library has code for (cuda/build.sh)

// Describes a device by its properties, without creating a context on it. Returns an empty string and sets open_error if the
// device cannot be used.
std::string describe_device(int device) {
  int count = 0, driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  const auto refuse = [](const std::string& why) {
    cudaGetLastError();
    open_error = why;
    return std::string();
  };
  if (driver == 0) return refuse("no NVIDIA driver is installed");
  if (driver / 1000 < runtime / 1000)  // within a major version, older drivers run code of newer toolkits
    return refuse("the NVIDIA driver is for CUDA " + version(driver) + ", this library needs one for CUDA " +
                  std::to_string(runtime / 1000) + ".0 or later");
  if (cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) return refuse(cudaGetErrorString(status));
  if (device < 0 || device >= count)
    return refuse("there is no device " + std::to_string(device) + ", " + std::to_string(count) +
                  (count == 1 ? " was found" : " were found"));
  cudaDeviceProp properties;
  if (cudaError_t status = cudaGetDeviceProperties(&properties, device); status != cudaSuccess)
    return refuse(cudaGetErrorString(status));
  int pools = 0;
  cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, device);
  const std::string capability = std::to_string(properties.major) + "." + std::to_string(properties.minor);
  if (properties.major < least_capability)
    return refuse(std::string(properties.name) + " has compute capability " + capability + ", this library has code for " +
                  std::to_string(least_capability) + ".0 and later");
  if (!pools) return refuse(std::string(properties.name) + " has no memory pools, which this library allocates from");
  return std::string(properties.name) + ", compute capability " + capability + ", " +
         std::to_string(properties.multiProcessorCount) + " multiprocessors, " + gib(properties.totalGlobalMem);
}

// Acquires everything that `open` needs; returns the first error.
cudaError_t acquire(Context& c) {
  const auto first_error = [](std::initializer_list<cudaError_t> statuses) {
    for (cudaError_t s : statuses)
      if (s != cudaSuccess) return s;
    return cudaSuccess;
  };
  if (cudaError_t s = first_error({cudaSetDevice(c.device), cudaStreamCreateWithFlags(&c.stream, cudaStreamNonBlocking),
                                   cudaDeviceGetDefaultMemPool(&c.pool, c.device)}))
    return s;
  uint64_t keep = UINT64_MAX;  // keeps freed memory in the process, so that later allocations cost nothing
  c.staging.size = staging_bytes;
  return first_error({cudaMemPoolSetAttribute(c.pool, cudaMemPoolAttrReleaseThreshold, &keep),
                      cudaMallocHost(reinterpret_cast<void**>(&c.staging.half[0]), staging_bytes),
                      cudaMallocHost(reinterpret_cast<void**>(&c.staging.half[1]), staging_bytes),
                      cudaMallocHost(reinterpret_cast<void**>(&c.kernel_fault), sizeof(KernelFault)),
                      cudaEventCreateWithFlags(&c.staging.copied[0], cudaEventDisableTiming),
                      cudaEventCreateWithFlags(&c.staging.copied[1], cudaEventDisableTiming)});
}

void close(void* ctx) {
  auto* c = static_cast<Context*>(ctx);
  if (!c) return;
  cudaSetDevice(c->device);
  if (c->stream) cudaStreamSynchronize(c->stream);
  if (c->scratch) cudaFreeAsync(c->scratch, c->stream);
  for (void* p : c->retired) cudaFreeAsync(p, c->stream);
  close_lt(*c);
  for (int i : {0, 1}) {
    if (c->staging.half[i]) cudaFreeHost(c->staging.half[i]);
    if (c->staging.copied[i]) cudaEventDestroy(c->staging.copied[i]);
  }
  if (c->kernel_fault) cudaFreeHost(c->kernel_fault);
  if (c->stream) cudaStreamDestroy(c->stream);
  delete c;
}

void* open_context(int32_t device) {
  const std::string description = describe_device(device);
  if (description.empty()) return nullptr;
  auto* c = new (std::nothrow) Context;
  if (!c) {
    open_error = "no host memory";
    return nullptr;
  }
  c->device = device;
  if (cudaError_t status = acquire(*c)) {
    cudaGetLastError();
    open_error = cudaGetErrorString(status);
    close(c);
    return nullptr;
  }
  *c->kernel_fault = {};
  const char* decode = std::getenv("LOOPLM_CUDA_DECODE");
  if (decode && std::string(decode) == "graph") c->decode = DecodeBy::graph;
  if (decode && std::string(decode) == "launches") c->decode = DecodeBy::launches;
  c->description = description;
  open_lt(*c);
  return c;
}

void* open(int32_t device, int32_t) {
  try {
    return open_context(device);
  } catch (const std::exception&) {
    open_error = "no host memory";
    return nullptr;
  }
}

const char* inspect(int32_t device) {
  static thread_local std::string description;
  description = describe_device(device);
  return description.empty() ? nullptr : description.c_str();
}

const char* last_error(void* ctx) { return ctx ? static_cast<Context*>(ctx)->error.c_str() : open_error.c_str(); }
const char* describe(void* ctx) { return static_cast<Context*>(ctx)->description.c_str(); }

// If the allocation fails, returns the pool's unused memory to the device and tries once more.
void* take(Context& c, size_t bytes) {
  void* p = nullptr;
  if (refuse_recorded(c, "an allocation")) return nullptr;
  for (int attempt = 0; attempt < 2; attempt++) {
    const cudaError_t status = cudaMallocAsync(&p, std::max<size_t>(bytes, 1), c.stream);
    if (status == cudaSuccess) return p;
    cudaGetLastError();
    cudaStreamSynchronize(c.stream);
    cudaMemPoolTrimTo(c.pool, 0);
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    fail(c, std::string(cudaGetErrorString(status)) + ": " + gib(bytes) + " were requested, " + gib(free) + " of " + gib(total) +
                " are free");
  }
  return nullptr;
}

void* allocate(void* ctx, size_t bytes) { return take(enter(ctx), bytes); }
void release(void* ctx, void* p) {
  Context& c = enter(ctx);
  cudaFreeAsync(p, c.stream);
}

// Takes a piece of at most `bytes` of pinned memory. taken: the size of the piece.
cudaError_t stage(Context& c, size_t bytes, char** p, size_t* taken) {
  Staging& s = c.staging;
  if (s.used == s.size) {
    if (cudaError_t status = cudaEventRecord(s.copied[s.active], c.stream)) return status;
    s.active ^= 1;
    s.used = 0;
    if (cudaError_t status = cudaEventSynchronize(s.copied[s.active])) return status;
  }
  *p = s.half[s.active] + s.used;
  *taken = std::min(bytes, s.size - s.used);
  s.used = std::min(s.size, (s.used + *taken + 255) / 256 * 256);
  return cudaSuccess;
}

int copy_in(void* ctx, void* dst, const void* host_src, size_t bytes) { return send(enter(ctx), dst, host_src, bytes); }

int copy_out(void* ctx, void* host_dst, const void* src, size_t bytes) { return read_back(enter(ctx), host_dst, src, bytes); }

int copy(void* ctx, void* dst, const void* src, size_t bytes) {
  Context& c = enter(ctx);
  return bytes == 0 ? 0 : check(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, c.stream), "copy");
}

int zero(void* ctx, void* dst, size_t bytes) {
  Context& c = enter(ctx);
  return bytes == 0 ? 0 : check(c, cudaMemsetAsync(dst, 0, bytes, c.stream), "zero");
}

// Unused memory of the pool counts as free. Another thread may be using the context, so errors are not stored in it.
int properties(void* ctx, LoopDeviceProperties* out) {
  Context& c = enter(ctx);
  *out = {.model_dtypes = 1u << LOOP_F32 | 1u << LOOP_BF16,
          .host_visible = 0,
          .memory_free = 0,
          .memory_total = 0,
          .logits_bytes = int64_t(384) << 20,  // 2048 rows of 49,152 tokens
          .micro_batch_bytes = int64_t(64) << 20,
          .micro_batch_tokens = 2048,
          .quantized_rows = 1,
          .int8_activations = 0,
          .asymmetric_weights = 0};
  uint64_t reserved = 0, used = 0;
  cudaError_t status = cudaMemGetInfo(&out->memory_free, &out->memory_total);
  if (status == cudaSuccess) status = cudaMemPoolGetAttribute(c.pool, cudaMemPoolAttrReservedMemCurrent, &reserved);
  if (status == cudaSuccess) status = cudaMemPoolGetAttribute(c.pool, cudaMemPoolAttrUsedMemCurrent, &used);
  if (status != cudaSuccess) return cudaGetLastError(), 1;
  out->memory_free += size_t(reserved - std::min(reserved, used));
  return 0;
}

int synchronize(void* ctx) { return wait(enter(ctx), "synchronize"); }

}  // namespace

int send(Context& c, void* device, const void* host, size_t bytes) {
  if (int status = refuse_recorded(c, "copy_in")) return status;
  auto* to = static_cast<char*>(device);
  for (auto* from = static_cast<const char*>(host); bytes > 0;) {
    char* p = nullptr;
    size_t n = 0;
    if (int status = check(c, stage(c, bytes, &p, &n), "copy_in")) return status;
    std::memcpy(p, from, n);
    if (int status = check(c, cudaMemcpyAsync(to, p, n, cudaMemcpyHostToDevice, c.stream), "copy_in")) return status;
    from += n, to += n, bytes -= n;
  }
  return 0;
}

// Copies piece by piece through the two halves: one is copied to the host array while the device fills the other.
int read_back(Context& c, void* host, const void* device, size_t bytes) {
  Staging& s = c.staging;
  if (int status = wait(c, "copy_out")) return status;  // waiting also frees both halves
  s.used = 0;
  auto* to = static_cast<char*>(host);
  const auto* from = static_cast<const char*>(device);
  const size_t pieces = size_t(ceil_div(int64_t(bytes), int64_t(s.size)));
  const auto length = [&](size_t i) { return std::min(s.size, bytes - i * s.size); };
  for (size_t i = 0; i <= pieces; i++) {
    if (i < pieces) {
      const int half = int(i & 1);
      cudaError_t status = cudaMemcpyAsync(s.half[half], from + i * s.size, length(i), cudaMemcpyDeviceToHost, c.stream);
      if (status == cudaSuccess) status = cudaEventRecord(s.copied[half], c.stream);
      if (status != cudaSuccess) return check(c, status, "copy_out");
    }
    if (i > 0) {
      const int half = int((i - 1) & 1);
      if (int status = check(c, cudaEventSynchronize(s.copied[half]), "copy_out")) return status;
      std::memcpy(to + (i - 1) * s.size, s.half[half], length(i - 1));
    }
  }
  return 0;
}

void* scratch(Context& c, size_t bytes) {
  if (bytes <= c.scratch_bytes) return c.scratch;
  if (refuse_recorded(c, "an allocation")) return nullptr;
  if (c.scratch && c.recordings > 0) c.retired.push_back(c.scratch);
  else if (c.scratch) cudaFreeAsync(c.scratch, c.stream);
  c.scratch = take(c, bytes);
  c.scratch_bytes = c.scratch ? bytes : 0;
  return c.scratch;
}

void add_memory(LoopBackend& table) {
  table.open = open;
  table.inspect = inspect;
  table.close = close;
  table.last_error = last_error;
  table.describe = describe;
  table.properties = guarded<properties>;
  table.allocate = guarded<allocate>;
  table.release = guarded<release>;
  table.copy_in = guarded<copy_in>;
  table.copy_out = guarded<copy_out>;
  table.copy = guarded<copy>;
  table.zero = guarded<zero>;
  table.synchronize = guarded<synchronize>;
}

}  // namespace looplm::cuda
