// What comm_library.cpp and cuda/nccl.cu say of NCCL's versions.
#pragma once
#include <string>

namespace looplm {

constexpr int oldest_nccl = 2700;  // 2.7, the first with ncclSend and ncclRecv
constexpr const char* nccl_packages = " (Debian and Ubuntu: libnccl2 of NVIDIA's packages; pip: nvidia-nccl-cu12)";

inline std::string nccl_version_text(int v) {  // 2708 is 2.7.8; since 2.9, 21805 is 2.18.5
  const int major = v < 10000 ? v / 1000 : v / 10000, rest = v < 10000 ? v % 1000 : v % 10000;
  return std::to_string(major) + "." + std::to_string(rest / 100) + "." + std::to_string(rest % 100);
}

}  // namespace looplm
