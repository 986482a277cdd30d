// The devices that this build knows: which kernel table a name stands for.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/device.h"

namespace looplm {

// name: "cpu", "reference", "cuda", "cuda:1", "cuda-emulated". threads 0: one per available core. Throws UNSUPPORTED when the
// device is not there, INVALID_ARGUMENT for a name that no device has.
std::shared_ptr<Device> open_device(const std::string& name, int threads);

// Name, whether it is usable here, and why not. CUDA devices are described by their properties; `opened`: by a context made for
// each, which takes memory and time, and knows more (cuBLASLt).
struct DeviceInfo {
  std::string name, description;
  bool available;
};
std::vector<DeviceInfo> list_devices(bool opened);

}  // namespace looplm
