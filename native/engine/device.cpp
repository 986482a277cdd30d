#include "device.h"

#include <algorithm>
#include <thread>
#include <utility>

namespace looplm {

namespace {
std::atomic<size_t> allocated{0}, peak{0}, buffers{0};

void count_allocation(size_t bytes) {
  size_t now = allocated.fetch_add(bytes) + bytes;
  for (size_t seen = peak.load(); now > seen && !peak.compare_exchange_weak(seen, now);) {
  }
  buffers.fetch_add(1);
}
}  // namespace

MemoryStats memory_stats() { return {allocated.load(), peak.load(), buffers.load()}; }
void reset_peak_memory() { peak = allocated.load(); }

Device::Device(std::string name, const LoopBackend* table, void* context, int threads)
    : name_(std::move(name)), table_(table), context_(context), threads_(threads) {
  try {
    properties_ = properties();
  } catch (...) {
    table_->close(context_);
    throw;
  }
}
Device::~Device() { table_->close(context_); }
size_t Device::threads() const {
  if (!host_visible()) return 1;
  return threads_ > 0 ? size_t(threads_) : std::max(1u, std::thread::hardware_concurrency());
}

LoopDeviceProperties Device::properties() const {
  LoopDeviceProperties p{};
  if (table_->properties(context_, &p) != 0)
    throw Error("INTERNAL", "properties", "device \"" + name_ + "\": its properties could not be read");
  return p;
}
MemoryRoom Device::memory() const {
  if (host_visible()) return host_memory();
  const LoopDeviceProperties now = properties();
  return {now.memory_free, now.memory_total};
}
std::string Device::advice() const { return std::string(": ") + (remedy ? remedy : "dispose of models that are not needed"); }

namespace {
// Linux overcommits: it grants more memory than exists and later kills the process that uses it. Compare large allocations
// with the memory that is really free.
bool exceeds_host(const MemoryRoom& room, size_t bytes) { return bytes > room.free && bytes - room.free > room.swap; }
constexpr size_t LARGE = size_t(64) << 20;
}  // namespace

Buffer::Buffer(std::shared_ptr<Device> device, size_t bytes) : device_(std::move(device)), bytes_(bytes) {
  const bool compared = device_->host_visible() && bytes >= LARGE;
  if (!compared || !exceeds_host(host_memory(), bytes)) data_ = device_->table_->allocate(device_->context_, bytes);
  if (!data_) {
    const std::string free = device_->host_visible() ? std::to_string(host_memory().free) + " bytes are free"
                                                     : device_->table_->last_error(device_->context_);
    throw Error("OUT_OF_MEMORY", "allocate",
                std::to_string(bytes) + " bytes could not be allocated on device \"" + device_->name() +
                    "\" while looplm holds " + std::to_string(allocated.load()) + " bytes (" + free + ")" + device_->advice());
  }
  count_allocation(bytes_);
}
Buffer::~Buffer() {
  if (!data_) return;
  device_->table_->release(device_->context_, data_);
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
  *this = Buffer();  // free the old buffer first, so that both are never allocated together
  *this = Buffer(device, bytes);
}
void Buffer::extend(const std::shared_ptr<Device>& device, size_t bytes) {
  if (bytes <= bytes_) return;
  Buffer larger(device, bytes);
  if (bytes_ > 0) device->run(&LoopBackend::copy, "copy", larger.data_, data_, bytes_);
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
