// The first line of MPI_Get_library_version in a uniform form, such as "Open MPI v4.1.4" or "MPICH 4.0.2".
#pragma once
#include <string>

namespace looplm {

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

}  // namespace looplm
