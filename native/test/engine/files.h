// Temporary folders and files for tests.
#pragma once
#include <dirent.h>
#include <ftw.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "../../engine/safetensors.h"

namespace looplm::test {

// Deleted at the end of the test, with everything in it.
struct Folder {
  Folder() {
    char name[] = "/tmp/looplm-test-XXXXXX";
    if (!mkdtemp(name)) std::abort();
    path = name;
  }
  Folder(const Folder&) = delete;
  ~Folder() {
    const auto remove = [](const char* name, const struct stat*, int, FTW*) { return std::remove(name); };
    ::nftw(path.c_str(), remove, 8, FTW_DEPTH | FTW_PHYS);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    DIR* dir = ::opendir(path.c_str());
    for (const dirent* entry; (entry = ::readdir(dir));)
      if (entry->d_name[0] != '.') out.push_back(entry->d_name);
    ::closedir(dir);
    return out;
  }
  std::string operator/(const std::string& name) const { return path + "/" + name; }
  std::string path;
};

inline std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline SafetensorsOutput output(const std::string& name, const std::string& dtype, std::vector<int64_t> shape,
                                std::vector<uint8_t> bytes) {
  return {name, dtype, std::move(shape),
          [bytes = std::move(bytes)](uint8_t* out) { std::copy(bytes.begin(), bytes.end(), out); }};
}

template <class T>
std::vector<uint8_t> bytes_of(const std::vector<T>& values) {
  std::vector<uint8_t> out(values.size() * sizeof(T));
  std::memcpy(out.data(), values.data(), out.size());
  return out;
}

// A safetensors file in memory: `header`, followed by data_bytes zeros.
inline std::string image(const std::string& header, size_t data_bytes) {
  std::string out(8, '\0');
  for (int i = 0; i < 8; i++) out[size_t(i)] = char(uint64_t(header.size()) >> 8 * i);
  return out + header + std::string(data_bytes, '\0');
}

inline SafetensorsContents parse(const std::string& file) {
  const std::vector<char> exact(file.begin(), file.end());  // no byte after the end, so that a sanitizer detects overruns
  return parse_safetensors("the.file", exact.data(), exact.size());
}

}  // namespace looplm::test
