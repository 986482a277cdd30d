// A device context and its memory. The engine reaches a backend only through this class.
#pragma once
#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../backend.h"
#include "error.h"
#include "host_memory.h"

namespace looplm {

struct MemoryStats {
  size_t allocated_bytes = 0;  // allocated now, over all devices of the process
  size_t peak_bytes = 0;
  size_t buffers = 0;
};
MemoryStats memory_stats();
void reset_peak_memory();

class Device {
 public:
  // context: an open context of `table`; the device closes it. threads: as the caller asked, 0 for all cores. To open a
  // device by name, see native/backends.h.
  Device(std::string name, const LoopBackend* table, void* context, int threads = 0);
  ~Device();
  Device(const Device&) = delete;

  std::string name() const { return name_; }
  std::string last_error() const { return table_->last_error(context_); }
  std::string description() const { return table_->describe(context_); }
  // Number of threads that may write to device memory at once: 1 if it is not host memory.
  size_t threads() const;
  bool host_visible() const { return properties_.host_visible != 0; }
  int64_t logits_bytes() const { return properties_.logits_bytes; }
  int64_t micro_batch_bytes() const { return properties_.micro_batch_bytes; }
  int64_t micro_batch_tokens() const { return properties_.micro_batch_tokens; }
  int64_t quantized_rows() const { return properties_.quantized_rows; }
  int int8_activations() const { return properties_.int8_activations; }
  bool asymmetric_weights() const { return properties_.asymmetric_weights != 0; }
  // Total and free device memory; for devices that compute in host memory, that of the host. Callable from any thread.
  MemoryRoom memory() const;
  bool supports(LoopDType dt) const { return properties_.model_dtypes >> dt & 1; }

  // Calls one function of the table: device.run(&LoopBackend::rope, "rope", dt, n, ...). Throws ABORTED if the cancel flag is
  // set, so a long operation stops between two kernels.
  template <class Function, class... Arguments>
  void run(Function LoopBackend::*function, const char* operation, Arguments... arguments) {
    if (const int status = call(function, operation, arguments...)) fail(status, operation);
  }
  // Like run, for a function that a backend may lack or decline. Returns whether it ran.
  template <class Function, class... Arguments>
  bool attempt(Function LoopBackend::*function, const char* operation, Arguments... arguments) {
    if (!has(function)) return false;
    const int status = call(function, operation, arguments...);
    if (status && status != LOOP_DECLINED) fail(status, operation);
    return status == 0;
  }
  // Whether the backend has this optional function.
  template <class Function>
  bool has(Function LoopBackend::*function) const {
    return table_->*function != nullptr;
  }

  // Opens the link to the other devices (device_link.h). NULL if that fails; last_error() then says why.
  void* open_link(const void* key, int rank, int size, double timeout) {
    return table_->link_open(context_, key, rank, size, timeout);
  }
  void close_link(void* link) noexcept { table_->link_close(context_, link); }

  // Ends a recording, even if the calls in it were aborted. Returns false if the recording failed.
  bool end_recording(void** recording) noexcept { return table_->recorded(context_, recording) == 0; }
  void forget(void* recording) noexcept { table_->forget(context_, recording); }

  const std::atomic<bool>* cancel = nullptr;  // set by the caller for the duration of one engine call
  const char* remedy = nullptr;               // advice added to out-of-memory errors; see Remedy

 private:
  friend class Buffer;
  template <class Function, class... Arguments>
  int call(Function LoopBackend::*function, const char* operation, Arguments... arguments) {
    if (cancel && cancel->load(std::memory_order_relaxed))
      throw Error("ABORTED", operation, "the operation was aborted by its AbortSignal");
    return (table_->*function)(context_, arguments...);
  }
  [[noreturn]] void fail(int status, const char* operation) const {
    const char* code = status == LOOP_OUT_OF_MEMORY ? "OUT_OF_MEMORY" : status == LOOP_UNSUPPORTED ? "UNSUPPORTED" : "INTERNAL";
    throw Error(code, operation, table_->last_error(context_) + (status == LOOP_OUT_OF_MEMORY ? advice() : ""));
  }
  std::string advice() const;
  LoopDeviceProperties properties() const;
  std::string name_;
  const LoopBackend* table_;
  void* const context_;
  const int threads_;
  LoopDeviceProperties properties_;  // without the free memory, which changes
};

// Disables the cancel flag while stopping halfway would leave neither the old nor the new state.
class Uninterrupted {
 public:
  explicit Uninterrupted(Device& device) : device_(device), cancel_(std::exchange(device.cancel, nullptr)) {}
  ~Uninterrupted() { device_.cancel = cancel_; }
  Uninterrupted(const Uninterrupted&) = delete;

 private:
  Device& device_;
  const std::atomic<bool>* const cancel_;
};

// Sets the advice for out-of-memory errors during one operation. Each operation knows which options really help.
class Remedy {
 public:
  Remedy(Device& device, const char* text) : device_(device), before_(std::exchange(device.remedy, text)) {}
  ~Remedy() { device_.remedy = before_; }
  Remedy(const Remedy&) = delete;

 private:
  Device& device_;
  const char* const before_;
};

// Owned device memory. data() of an empty buffer is nullptr.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<Device> device, size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  template <class T = void>
  T* as() {
    return static_cast<T*>(data_);
  }
  template <class T = void>
  const T* as() const {
    return static_cast<const T*>(data_);
  }
  void* at(size_t byte_offset) { return as<char>() + byte_offset; }
  const void* at(size_t byte_offset) const { return as<char>() + byte_offset; }
  size_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }
  void reserve(const std::shared_ptr<Device>& device, size_t bytes);  // grows; the contents are lost if it does
  void extend(const std::shared_ptr<Device>& device, size_t bytes);   // grows and keeps the contents, also when the allocation
                                                                      // fails
  void upload(const void* host, size_t bytes, size_t byte_offset = 0);
  void download(void* host, size_t bytes, size_t byte_offset = 0) const;
  void zero(size_t bytes, size_t byte_offset = 0);

 private:
  std::shared_ptr<Device> device_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Real numbers copied between host and device: float32, or float64 on the device `reference`.
void upload_reals(Buffer& buffer, LoopDType dt, const double* values, size_t count, size_t element_offset = 0);
std::vector<double> download_reals(const Buffer& buffer, LoopDType dt, size_t count, size_t element_offset = 0);

}  // namespace looplm
