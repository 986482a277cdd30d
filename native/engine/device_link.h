// The direct link between the devices of the ranks (NCCL), if their backend has one: buffers stay on the devices. Without it,
// exchanges go through host memory (data_parallel.cpp).
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "communicator.h"
#include "device.h"

namespace looplm {

class DeviceLink {
 public:
  // Called by all ranks together, each with its device. Returns NULL on all of them if a device has no link; `why_not` then
  // gives the reason. Throws PARALLEL on all of them if library versions differ, two ranks use one device, or the requested
  // library cannot be opened.
  static std::unique_ptr<DeviceLink> open(std::shared_ptr<Device> device, Communicator& world, std::string& why_not);
  ~DeviceLink();
  DeviceLink(const DeviceLink&) = delete;

  // Buffers are device memory, one entry per rank, as in comm.h. The exchange starts after the work already queued on the
  // device. Does not wait.
  void exchange(const std::vector<const void*>& send, const std::vector<int64_t>& send_bytes, const std::vector<void*>& receive,
                const std::vector<int64_t>& receive_bytes);
  // Whether the oldest exchange not yet reported as complete has finished. `wait`: blocks until it has. On failure throws
  // PARALLEL with the operation, the rank, the cause and what to do.
  bool arrived(bool wait);
  // Waits until the oldest exchange has finished or the link is lost. Ignores errors.
  void forget_oldest() noexcept;
  const std::string& description() const { return description_; }
  static const int64_t INTRODUCTION;  // bytes of the description that a rank sends to each other rank

 private:
  DeviceLink(std::shared_ptr<Device> device, Communicator& world, void* link, std::string description)
      : device_(std::move(device)), world_(world), link_(link), description_(std::move(description)) {}
  const std::shared_ptr<Device> device_;
  Communicator& world_;
  void* const link_;
  const std::string description_;
};

}  // namespace looplm
