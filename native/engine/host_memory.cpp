#include "host_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace looplm {

namespace {

constexpr size_t UNLIMITED = SIZE_MAX;

// Applies one memory limit. A limit above the machine's memory changes nothing.
void narrow(MemoryRoom& room, size_t limit, size_t used) {
  room.total = std::min(room.total, limit);
  room.free = std::min(room.free, limit - std::min(limit, used));
}

// Lines of a file; empty if the file is missing. Avoids std::ifstream, which would add half a megabyte to the addon.
std::vector<std::string> lines_of(const std::string& path) {
  std::vector<std::string> lines;
  FILE* file = std::fopen(path.c_str(), "re");
  if (!file) return lines;
  char* line = nullptr;
  size_t capacity = 0;
  for (ssize_t length; (length = getline(&line, &capacity, file)) >= 0;) {
    while (length > 0 && line[length - 1] == '\n') length--;
    lines.emplace_back(line, size_t(length));
  }
  std::free(line);
  std::fclose(file);
  return lines;
}

// Splits a line at spaces and tabs.
std::vector<std::string> words_of(const std::string& line) {
  std::vector<std::string> words;
  for (size_t at = 0; (at = line.find_first_not_of(" \t", at)) != std::string::npos;) {
    const size_t end = std::min(line.find_first_of(" \t", at), line.size());
    words.push_back(line.substr(at, end - at));
    at = end;
  }
  return words;
}

// UNLIMITED for anything that is not a number, such as "max".
size_t number_of(const std::string& word) {
  return word.empty() || word[0] < '0' || word[0] > '9' ? UNLIMITED : size_t(std::strtoull(word.c_str(), nullptr, 10));
}

// Reads a file that holds one number. UNLIMITED if the file is missing or says "max".
size_t read_number(const std::string& path) {
  const std::vector<std::string> lines = lines_of(path);
  return lines.empty() ? UNLIMITED : number_of(lines[0]);
}

// The number that follows `name` in a file with lines "name: value kB" or "name value". Returns `missing` if there is no such
// line.
size_t read_field(const std::string& path, const std::string& name, size_t missing) {
  for (const std::string& line : lines_of(path)) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() < 2 || words[0] != name || number_of(words[1]) == UNLIMITED) continue;
    return number_of(words[1]) * (words.size() > 2 && words[2] == "kB" ? 1024 : 1);
  }
  return missing;
}

// Applies the limit of one control group (version 2 or 1). The page cache counts as used there, but the kernel drops it when
// memory is needed, so it is subtracted.
void narrow_by_group(MemoryRoom& room, const std::string& folder, const char* limit, const char* usage,
                     const std::string& prefix) {
  const size_t most = read_number(folder + limit), used = read_number(folder + usage);
  if (most == UNLIMITED || used == UNLIMITED) return;
  const std::string stat = folder + "/memory.stat";
  const size_t reclaimable = read_field(stat, prefix + "inactive_file", 0) + read_field(stat, prefix + "active_file", 0);
  narrow(room, most, used - std::min(used, reclaimable));
}

// /proc/self/cgroup has lines "0::/path" (version 2) and "4:memory:/path" (version 1). A container may see its own group as
// the root, whatever the path says. So this applies the limit of every folder from the path up to the root.
void narrow_by_groups(MemoryRoom& room, const std::string& root) {
  for (const std::string& line : lines_of(root + "/proc/self/cgroup")) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool two = controllers == ",,";
    if (!two && controllers.find(",memory,") == std::string::npos) continue;
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      while (path.ends_with('/')) path.pop_back();
      if (two) narrow_by_group(room, root + "/sys/fs/cgroup" + path, "/memory.max", "/memory.current", "");
      else
        narrow_by_group(room, root + "/sys/fs/cgroup/memory" + path, "/memory.limit_in_bytes", "/memory.usage_in_bytes",
                        "total_");
      if (path.find('/') == std::string::npos) break;
    }
  }
}

void narrow_by_limit(MemoryRoom& room, int resource, size_t used) {
  rlimit limit;
  if (getrlimit(resource, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) narrow(room, size_t(limit.rlim_cur), used);
}

}  // namespace

MemoryRoom host_memory(const std::string& root) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE)), all = size_t(sysconf(_SC_PHYS_PAGES)) * page;
  const std::string meminfo = root + "/proc/meminfo";
  MemoryRoom room;
  room.total = read_field(meminfo, "MemTotal:", all);
  room.free = read_field(meminfo, "MemAvailable:", room.total);
  room.swap = read_field(meminfo, "SwapFree:", 0);
  if (read_number(root + "/proc/sys/vm/overcommit_memory") == 2)  // mode 2: the kernel promises no more memory than it has
    narrow(room, read_field(meminfo, "CommitLimit:", UNLIMITED), read_field(meminfo, "Committed_AS:", 0));
  narrow_by_groups(room, root);
  // Pages: size, resident, shared, text, library, data and stack, ...
  const std::vector<std::string> statm = lines_of(root + "/proc/self/statm");
  const std::vector<std::string> pages = statm.empty() ? statm : words_of(statm[0]);
  if (pages.size() > 5) {
    narrow_by_limit(room, RLIMIT_AS, number_of(pages[0]) * page);
    narrow_by_limit(room, RLIMIT_DATA, number_of(pages[5]) * page);
  }
  return room;
}

}  // namespace looplm
