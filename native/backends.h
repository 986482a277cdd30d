// The devices that this build supports, by name.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/device.h"

namespace looplm {

// name: "cpu", "reference", "cuda", "cuda:1", "cuda-emulated". threads 0: one per available core. Throws UNSUPPORTED for
// an unknown or unavailable device, and INVALID_ARGUMENT for a malformed number such as "cuda:x".
std::shared_ptr<Device> open_device(const std::string& name, int threads);

// A device's name, whether it is usable here, and if not why. CUDA devices are described by their properties. With `opened`,
// a context is created for each one: that takes memory and time, but gives more details (cuBLASLt).
struct DeviceInfo {
  std::string name, description;
  bool available;
};
std::vector<DeviceInfo> list_devices(bool opened);

}  // namespace looplm
