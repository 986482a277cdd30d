// Device buffers of a model that are kept from call to call, by name. They grow, and are given back with
// Model::release_workspace.
#pragma once
#include <map>
#include <string>

#include "device.h"

namespace looplm {

class Workspace {
 public:
  explicit Workspace(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  Buffer& get(const std::string& name, size_t bytes) {
    Buffer& buffer = buffers_[name];
    if (bytes > buffer.bytes()) generation_++;
    buffer.reserve(device_, bytes);
    return buffer;
  }
  uint64_t generation() const { return generation_; }  // another number when a buffer has moved

 private:
  std::shared_ptr<Device> device_;
  std::map<std::string, Buffer> buffers_;
  uint64_t generation_ = 0;
};

}  // namespace looplm
