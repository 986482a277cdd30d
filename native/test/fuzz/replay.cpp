// Runs a target on every file of a folder, in order of their names: looplm_fuzz_replay TARGET FOLDER. A broken promise
// aborts; the last printed line names the input.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "fuzz.h"

int main(int count, char** arguments) {
  using namespace looplm;
  const std::map<std::string, void (*)(const uint8_t*, size_t)> targets = {
      {"safetensors", fuzz::safetensors}, {"json", fuzz::json}, {"checkpoint", fuzz::checkpoint}};
  if (count != 3 || !targets.count(arguments[1])) {
    std::fprintf(stderr, "looplm_fuzz_replay safetensors|json|checkpoint FOLDER\n");
    return 2;
  }
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(arguments[2])) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  for (const auto& path : paths) {
    std::printf("%s\n", path.filename().c_str());
    std::fflush(stdout);
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    targets.at(arguments[1])(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  return 0;
}
