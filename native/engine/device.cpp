#include "device.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "../cpu/cpu.h"
#include "../reference/reference.h"
#include "cuda_library.h"

namespace looplm {

namespace {
std::atomic<size_t> allocated{0}, peak{0}, buffers{0};

void count_allocation(size_t bytes) {
  size_t now = allocated.fetch_add(bytes) + bytes;
  for (size_t seen = peak.load(); now > seen && !peak.compare_exchange_weak(seen, now);) {
  }
  buffers.fetch_add(1);
}

// "cuda" and "cuda:0" are the first device, "cuda:1" the second.
constexpr const char* emulated_name = "cuda-emulated";
bool is_cuda(const std::string& name) { return name == "cuda" || name.starts_with("cuda:"); }
int device_index(const std::string& name) {
  const size_t colon = name.find(':');
  if (colon == std::string::npos) return 0;
  const std::string digits = name.substr(colon + 1);
  if (digits.empty() || digits.size() > 4 || digits.find_first_not_of("0123456789") != std::string::npos)
    throw Error("INVALID_ARGUMENT", "device", "\"" + name + "\" is not a device: the first one is \"cuda:0\"");
  return std::stoi(digits);
}

std::string joined(const std::vector<std::string>& lines) {
  std::string out;
  for (const std::string& line : lines) out += (out.empty() ? "" : "; ") + line;
  return out;
}

const LoopBackend* find_backend(const std::string& name) {
  if (name == "cpu") {
    if (const LoopBackend* table = looplm_cpu_backend()) return table;
    const char* asked = std::getenv("LOOPLM_CPU_ISA");
    throw Error("UNSUPPORTED", "device",
                (asked ? "LOOPLM_CPU_ISA in the environment is \"" + std::string(asked) +
                             "\"; it takes avx512_bf16, avx512, avx2 or baseline, and this build may have some of them only"
                       : "this build has no kernels for the processor") +
                    " (npm run build makes all)");
  }
  if (name == "reference") return looplm_reference_backend();
  if (is_cuda(name) || name == emulated_name) {
    const CudaLibrary& library = cuda_library(name == emulated_name);
    if (library.table) return library.table;
    throw Error("UNSUPPORTED", "device", "device \"" + name + "\" needs the CUDA library; tried " + joined(library.tried));
  }
  throw Error("UNSUPPORTED", "device", "unknown device \"" + name + "\": there are \"cpu\", \"reference\" and \"cuda\"");
}

Error could_not_be_opened(const std::string& name, const LoopBackend* table) {
  return Error("UNSUPPORTED", "device",
               "device \"" + name + "\" could not be opened: " + table->last_error(nullptr) +
                   (is_cuda(name) ? "; tried " + joined(cuda_library(false).tried) : ""));
}
}  // namespace

MemoryStats memory_stats() { return {allocated.load(), peak.load(), buffers.load()}; }
void reset_peak_memory() { peak = allocated.load(); }

Device::Device(const std::string& name, int threads) : name_(name), table_(find_backend(name)) {
  ctx_ = table_->open(device_index(name), threads);
  if (!ctx_) throw could_not_be_opened(name, table_);
}
Device::~Device() { table_->close(ctx_); }

std::vector<DeviceInfo> list_devices(bool opened) {
  std::vector<DeviceInfo> out;
  const auto not_used = [](const std::string& name, const Error& error) {
    return DeviceInfo{name, std::string("not used: ") + error.what(), false};
  };
  for (const char* name : {"cpu", "reference"}) {
    try {
      out.push_back({name, Device(name, 0).description(), true});
    } catch (const Error& error) {
      out.push_back(not_used(name, error));
    }
  }
  // The first CUDA device or why there is none, then those after it.
  const CudaLibrary& library = cuda_library(false);
  for (int i = 0;; i++) {
    const std::string name = i == 0 ? "cuda" : "cuda:" + std::to_string(i);
    try {
      const LoopBackend* table = find_backend(name);
      const char* found = table->inspect(i);
      if (!found && i > 0) return out;
      if (!found) throw could_not_be_opened(name, table);
      const std::string description = found;
      out.push_back({name, (opened ? Device(name, 0).description() : description) + "; " + joined(library.tried), true});
    } catch (const Error& error) {
      out.push_back(not_used(name, error));
      if (!library.table || i == 0) return out;
    }
  }
}

MemoryRoom Device::memory() const {
  MemoryRoom room;
  if (in_host_memory()) return host_memory();
  if (table_->memory(ctx_, &room.free, &room.total) != 0)
    throw Error("INTERNAL", "memory", "device \"" + name_ + "\" does not say how much memory it has");
  return room;
}
std::string Device::advice() const { return std::string(": ") + (remedy ? remedy : "dispose of models that are not needed"); }

namespace {
// Linux grants more memory than there is, and kills the process that uses it, so large pieces are compared with what there is.
bool exceeds_host(const MemoryRoom& room, size_t bytes) { return bytes > room.free && bytes - room.free > room.swap; }
constexpr size_t LARGE = size_t(64) << 20;
}  // namespace

Buffer::Buffer(std::shared_ptr<Device> device, size_t bytes) : device_(std::move(device)), bytes_(bytes) {
  const bool compared = device_->in_host_memory() && bytes >= LARGE;
  if (!compared || !exceeds_host(host_memory(), bytes)) data_ = device_->table_->allocate(device_->ctx_, bytes);
  if (!data_) {
    const std::string free = device_->in_host_memory() ? std::to_string(host_memory().free) + " bytes are free"
                                                       : device_->table_->last_error(device_->ctx_);
    throw Error("OUT_OF_MEMORY", "allocate",
                std::to_string(bytes) + " bytes were asked of device \"" + device_->name() + "\" while looplm holds " +
                    std::to_string(allocated.load()) + " bytes (" + free + ")" + device_->advice());
  }
  count_allocation(bytes_);
}
Buffer::~Buffer() {
  if (!data_) return;
  device_->table_->release(device_->ctx_, data_);
  allocated.fetch_sub(bytes_);
  buffers.fetch_sub(1);
}
Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }
Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
void Buffer::reserve(const std::shared_ptr<Device>& device, size_t bytes) {
  if (bytes <= bytes_) return;
  *this = Buffer();  // first give back, then take: the two are never held together
  *this = Buffer(device, bytes);
}
void Buffer::extend(const std::shared_ptr<Device>& device, size_t bytes) {
  if (bytes <= bytes_) return;
  Buffer larger(device, bytes);
  if (bytes_ > 0) device->run(&LoopBackend::copy, "copy", larger.data_, static_cast<const void*>(data_), bytes_);
  *this = std::move(larger);
}
void Buffer::upload(const void* host, size_t bytes, size_t byte_offset) {
  device_->run(&LoopBackend::copy_in, "copy_in", at(byte_offset), host, bytes);
}
void Buffer::download(void* host, size_t bytes, size_t byte_offset) const {
  device_->run(&LoopBackend::copy_out, "copy_out", host, at(byte_offset), bytes);
}
void Buffer::zero(size_t bytes, size_t byte_offset) { device_->run(&LoopBackend::zero, "zero", at(byte_offset), bytes); }

void upload_reals(Buffer& buffer, LoopDType dt, const double* values, size_t count, size_t element_offset) {
  if (loop_real(dt) == LOOP_F64) {
    buffer.upload(values, count * 8, element_offset * 8);
    return;
  }
  std::vector<float> narrow(values, values + count);
  buffer.upload(narrow.data(), count * 4, element_offset * 4);
}
std::vector<double> download_reals(const Buffer& buffer, LoopDType dt, size_t count, size_t element_offset) {
  std::vector<double> out(count);
  if (loop_real(dt) == LOOP_F64) {
    buffer.download(out.data(), count * 8, element_offset * 8);
    return out;
  }
  std::vector<float> narrow(count);
  buffer.download(narrow.data(), count * 4, element_offset * 4);
  std::copy(narrow.begin(), narrow.end(), out.begin());
  return out;
}

}  // namespace looplm
