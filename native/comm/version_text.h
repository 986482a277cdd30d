// Versions of MPI and NCCL as text.
#pragma once
#include <string>

namespace looplm {

// The first line of MPI_Get_library_version in a uniform form, such as "Open MPI v4.1.4" or "MPICH 4.0.2".
inline std::string mpi_version_text(const std::string& text) {
  std::string line;
  for (char c : text.substr(0, text.find_first_of("\n,"))) {  // "Open MPI v4.1.4, package: ..."
    if (c == '\t') c = ' ';
    if (c != ' ' || (!line.empty() && line.back() != ' ')) line += c;
  }
  const size_t word = line.find(" Version:");
  if (word != std::string::npos) line.erase(word, 9);
  return line;
}

constexpr int oldest_nccl = 2700;  // 2.7, the first with ncclSend and ncclRecv
constexpr const char* nccl_packages = " (Debian and Ubuntu: libnccl2 of NVIDIA's packages; pip: nvidia-nccl-cu12)";

inline std::string nccl_version_text(int v) {  // 2708 is 2.7.8; since 2.9, 21805 is 2.18.5
  const int major = v < 10000 ? v / 1000 : v / 10000, rest = v < 10000 ? v % 1000 : v % 10000;
  return std::to_string(major) + "." + std::to_string(rest / 100) + "." + std::to_string(rest % 100);
}

}  // namespace looplm
