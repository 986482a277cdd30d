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
    buffer.reserve(device_, bytes);
    return buffer;
  }

 private:
  std::shared_ptr<Device> device_;
  std::map<std::string, Buffer> buffers_;
};

}  // namespace looplm
