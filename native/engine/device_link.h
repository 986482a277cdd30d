// The direct way between the devices of the ranks, where their backend has one (NCCL): buffers stay on the devices. Without it
// what travels goes through the host's memory (data_parallel.cpp).
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "communicator.h"
#include "device.h"

namespace looplm {

class DeviceLink {
 public:
  // All ranks together, each with its device. NULL on all of them when a device has no such way; `why_not` then says so. Throws
  // PARALLEL on all of them when versions differ, two ranks have one device, or the way that was asked for cannot be opened.
  static std::unique_ptr<DeviceLink> open(std::shared_ptr<Device> device, Communicator& world, std::string& why_not);
  ~DeviceLink();
  DeviceLink(const DeviceLink&) = delete;

  // Device memory, an entry for each rank, as in comm.h; begins behind what the device had been asked before and does not wait.
  void exchange(const std::vector<const void*>& send, const std::vector<int64_t>& send_bytes, const std::vector<void*>& receive,
                const std::vector<int64_t>& receive_bytes);
  // Whether the oldest exchange that was not yet found to be complete is so. `wait`: until it is. Error PARALLEL names operation,
  // rank, cause and remedy.
  bool arrived(bool wait);
  // Waits for it, and for no more than it takes to be lost.
  void forget_oldest() noexcept;
  const std::string& description() const { return description_; }
  static const int64_t INTRODUCTION;  // bytes with which a rank tells another one of its device

 private:
  DeviceLink(std::shared_ptr<Device> device, Communicator& world, void* link, std::string description)
      : device_(std::move(device)), world_(world), link_(link), description_(std::move(description)) {}
  const std::shared_ptr<Device> device_;
  Communicator& world_;
  void* const link_;
  const std::string description_;
};

}  // namespace looplm
