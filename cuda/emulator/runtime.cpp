#include "runtime.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "emulator.h"

using Work = std::function<cudaError_t()>;

struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};
// A copy between pinned memory and the device that the host has not waited for, or work of another library that ends later.
struct Transfer {
  bool to_host = false;
  void* host = nullptr;
  std::vector<char> bytes;  // the data from the device, or what the host memory contained at the start
  uint64_t number = 0;
  std::function<int()> poll;  // only for work of another library
};
int submit_for_others(void* stream, const std::function<int()>& work);
void end_later(void* stream, const std::function<int()>& poll);
struct CUstream_st {
  LooplmSubmit submit = submit_for_others;
  LooplmLater later = end_later;
  CUgraph_st* capture = nullptr;
  bool invalid = false;  // an operation was requested that a capture must not contain
  std::vector<Transfer> transfers;
  uint64_t last = 0;  // number of the last transfer
};
struct CUevent_st {
  std::chrono::steady_clock::time_point time;
  cudaStream_t stream = nullptr;
  uint64_t number = 0;  // the last transfer of the stream when the event was recorded
};

namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_fault;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

thread_local cudaStream_t captured = nullptr;  // the stream that this thread is capturing

// For operations that a capture must not contain: invalidates a capture under way, and returns whether there is one.
bool refused() {
  if (captured) captured->invalid = true;
  return captured != nullptr;
}

constexpr int processors = 4;

int number_or(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : otherwise;
}

struct Chip {
  int major = 9, minor = 0;
};
Chip chip() {
  Chip found;
  if (const char* text = std::getenv("LOOPLM_EMULATOR_CHIP")) std::sscanf(text, "%d.%d", &found.major, &found.minor);
  return found;
}

// Like CUDA's runtime, ends in an exit handler. Later calls fail, because the driver is gone.
std::atomic<bool> ended{false};
void end_with_process() {
  static const int registered = std::atexit([] {
    ended = true;
    usleep(50'000);  // takes some time, so that a thread that still works is noticed
  });
  (void)registered;
}
void require_alive() {
  if (!ended) return;
  std::fputs("emulator: a stream was used after CUDA's exit handler\n", stderr);
  std::_Exit(1);
}

size_t total_memory() {
  const char* text = std::getenv("LOOPLM_EMULATOR_MEMORY");
  return text ? std::strtoull(text, nullptr, 10) : size_t(16) << 30;
}

struct Mapping {
  void* base;
  size_t mapped, bytes;
};
struct Memory {
  std::mutex mutex;
  std::map<void*, Mapping> mappings;
  std::map<const char*, size_t> pinned;
  size_t used = 0;
};
Memory& memory() {
  static Memory& instance = *new Memory;  // never destroyed, because others may still hold memory
  return instance;
}

bool is_pinned(const void* pointer, size_t bytes) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  const auto* at = static_cast<const char*>(pointer);
  const auto after = m.pinned.upper_bound(at);
  if (after == m.pinned.begin()) return false;
  const auto found = std::prev(after);
  return at + bytes <= found->first + found->second;
}

// The host has waited for the stream's transfers up to `number`.
cudaError_t settle(cudaStream_t stream, uint64_t number) {
  cudaError_t status = cudaSuccess;
  while (stream && !stream->transfers.empty() && stream->transfers.front().number <= number) {
    const Transfer& t = stream->transfers.front();
    if (t.poll) {
      int ended = t.poll();
      for (; ended < 0; ended = t.poll()) usleep(100);
      if (ended != 0) status = looplm::emulator::report_fault("work of another library failed");
    } else if (t.to_host) std::memcpy(t.host, t.bytes.data(), t.bytes.size());
    else if (std::memcmp(t.host, t.bytes.data(), t.bytes.size()) != 0)
      status = looplm::emulator::report_fault("pinned memory changed while a copy from it to the device was under way");
    stream->transfers.erase(stream->transfers.begin());
  }
  return status;
}

// Work on a stream starts after earlier work of other libraries on it.
cudaError_t after_others(cudaStream_t stream) {
  const auto other = [](const Transfer& t) { return bool(t.poll); };
  if (!stream || std::none_of(stream->transfers.begin(), stream->transfers.end(), other)) return cudaSuccess;
  return settle(stream, UINT64_MAX);
}

constexpr size_t alignment = 256;
size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

}  // namespace

void end_later(void* stream, const std::function<int()>& poll) {
  auto* s = static_cast<cudaStream_t>(stream);
  s->transfers.push_back({false, nullptr, {}, ++s->last, poll});
}
cudaError_t looplm::emulator::submit(cudaStream_t stream, Work work) {
  require_alive();
  // the default stream waits for all other streams
  if (!stream && refused()) return result(cudaErrorStreamCaptureUnsupported);
  if (!stream || !stream->capture) {
    if (const cudaError_t status = after_others(stream)) return result(status);
    return result(work());
  }
  if (stream->invalid) return result(cudaErrorStreamCaptureInvalidated);
  stream->capture->work.push_back(std::move(work));
  return cudaSuccess;
}
int submit_for_others(void* stream, const std::function<int()>& work) {
  return looplm::emulator::submit(static_cast<cudaStream_t>(stream), [work] { return cudaError_t(work()); });
}
cudaError_t looplm::emulator::report_fault(const std::string& message) {
  last_fault = message;
  return cudaErrorLaunchFailure;
}

size_t looplm::emulator::shared_limit() {
  const Chip c = chip();
  if (c.major == 9 || c.major == 10) return max_shared_bytes;
  return size_t(c.major == 8 && (c.minor == 0 || c.minor == 7) ? 163 : c.major == 7 ? 64 : 99) * 1024;
}
int looplm::emulator::resident_blocks(size_t threads, size_t shared_bytes) {
  const size_t by_shared = (shared_limit() + 1024) / (shared_bytes + 1024);  // 1 KiB of every block is reserved by the system
  return threads == 0 ? 0 : int(std::min({size_t(2048) / threads, by_shared, size_t(32)}));
}
bool looplm::emulator::fits_together(dim3 grid, dim3 block, size_t shared_bytes) {
  const size_t blocks = size_t(grid.x) * grid.y * grid.z, threads = size_t(block.x) * block.y * block.z;
  return blocks <= size_t(processors * resident_blocks(threads, shared_bytes));
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "the driver is too old";
    case cudaErrorNoDevice:
      return "no device";
    case cudaErrorInvalidDevice:
      return "invalid device";
    case cudaErrorNotReady:
      return "not ready";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorLaunchFailure:
      return last_fault.empty() ? "launch failure" : last_fault.c_str();
  }
  return "unknown error";
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError";
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated", total_memory(), looplm::emulator::shared_limit(), chip().major, chip().minor, processors, 1 << 20};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = looplm::emulator::max_threads;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = processors;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = 1 << 20;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = chip().major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = chip().minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = int(looplm::emulator::shared_limit());
      return cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrMemoryPoolsSupported:
      *value = 1;
      return cudaSuccess;
  }
  return result(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int) {
  static std::atomic<int> asked{0};
  const char* place = std::getenv("LOOPLM_EMULATOR_PLACE");
  if (place) std::snprintf(text, size_t(length), "%s", place);
  else std::snprintf(text, size_t(length), "emulated:%d:%d", int(getpid()), asked++);
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = number_or("LOOPLM_EMULATOR_DRIVER", 13000);
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13020;  // newer than the driver, with the same major version
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  *total = total_memory();
  *free = *total - std::min(*total, m.used);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return result(refused() ? cudaErrorStreamCaptureUnsupported : cudaSuccess); }

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  *pointer = nullptr;
  if (refused()) return result(cudaErrorStreamCaptureUnsupported);
  if (bytes == 0) return cudaSuccess;
  const size_t page = size_t(sysconf(_SC_PAGESIZE)), kept = round_up(bytes, alignment), mapped = round_up(kept, page) + page;
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  if (kept > total_memory() - std::min(m.used, total_memory())) return result(cudaErrorMemoryAllocation);
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return result(cudaErrorMemoryAllocation);
  unsigned char* guard = static_cast<unsigned char*>(base) + mapped - page;
  mprotect(guard, page, PROT_NONE);
  *pointer = guard - kept;
  std::memset(*pointer, 0xFF, kept);
  m.mappings[*pointer] = {base, mapped, kept};
  m.used += kept;
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  if (!pointer) return cudaSuccess;
  if (refused()) return result(cudaErrorStreamCaptureUnsupported);
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  const auto found = m.mappings.find(pointer);
  if (found == m.mappings.end()) return result(cudaErrorInvalidValue);
  munmap(found->second.base, found->second.mapped);
  m.used -= found->second.bytes;
  m.mappings.erase(found);
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = nullptr;  // memory is freed at once, so the pool keeps nothing
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  *static_cast<uint64_t*>(value) = total - free;
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  *pointer = nullptr;
  if (refused()) return result(cudaErrorStreamCaptureUnsupported);
  *pointer = std::malloc(bytes);
  if (!*pointer) return result(cudaErrorMemoryAllocation);
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  m.pinned[static_cast<const char*>(*pointer)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, cudaHostAllocDefault); }
cudaError_t cudaFreeHost(void* pointer) {
  {
    Memory& m = memory();
    const std::lock_guard lock(m.mutex);
    m.pinned.erase(static_cast<const char*>(pointer));
  }
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const bool to_host = kind == cudaMemcpyDeviceToHost;
  const bool transfer = to_host || kind == cudaMemcpyHostToDevice;
  void* host = to_host ? to : const_cast<void*>(from);
  if (transfer && stream && !stream->capture && is_pinned(host, bytes)) {
    const auto* source = static_cast<const char*>(from);
    stream->transfers.push_back({to_host, host, {source, source + bytes}, ++stream->last, {}});
    if (to_host) std::memset(to, 0xFF, bytes);
    else std::memcpy(to, from, bytes);
    return cudaSuccess;
  }
  return looplm::emulator::submit(stream, [=] {
    if (bytes > 0) std::memmove(to, from, bytes);
    return cudaSuccess;
  });
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind, cudaStream_t stream) {
  return looplm::emulator::submit(stream, [=] {
    for (size_t row = 0; row < height; ++row)
      std::memmove(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    return cudaSuccess;
  });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return looplm::emulator::submit(stream, [=] {
    if (bytes > 0) std::memset(to, value, bytes);
    return cudaSuccess;
  });
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  end_with_process();
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const cudaError_t status = settle(stream, UINT64_MAX);
  delete stream;
  return result(status);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if ((!stream || stream == captured) && refused()) return result(cudaErrorStreamCaptureUnsupported);
  return result(settle(stream, UINT64_MAX));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->time = std::chrono::steady_clock::now();
  event->stream = stream;
  event->number = stream ? stream->last : 0;
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (refused()) return result(cudaErrorStreamCaptureUnsupported);
  return result(settle(event->stream, event->number));
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (!event->stream) return cudaSuccess;
  for (Transfer& t : event->stream->transfers) {
    if (t.number > event->number) break;
    if (!t.poll) continue;
    const int ended = t.poll();
    if (ended < 0) return result(cudaErrorNotReady);
    t.poll = [ended] { return ended; };
  }
  return result(settle(event->stream, event->number));
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream || captured) return result(cudaErrorInvalidValue);
  stream->capture = new CUgraph_st;
  stream->invalid = false;
  captured = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!stream->capture) return result(cudaErrorInvalidValue);
  CUgraph_st* made = std::exchange(stream->capture, nullptr);
  captured = nullptr;
  if (stream->invalid) {
    delete made;
    return result(cudaErrorStreamCaptureInvalidated);
  }
  *graph = made;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (stream && stream == captured && refused()) return result(cudaErrorStreamCaptureUnsupported);
  for (const Work& work : executable->work)
    if (const cudaError_t error = work(); error != cudaSuccess) return result(error);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
