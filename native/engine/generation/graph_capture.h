// Sequences of backend calls that are repeated with the same addresses and sizes. The backend records them once (as a CUDA
// graph) and replays them in one call. Backends without recordings make the calls every time.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "../device.h"

namespace looplm {

class GraphCapture {
 public:
  explicit GraphCapture(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  ~GraphCapture() { clear(); }
  GraphCapture(const GraphCapture&) = delete;

  // key: everything that determines the addresses and sizes in `calls`. The first run with a key makes the calls, which
  // allocates the memory that they need. The second run records and replays them, later runs only replay. Returns true after
  // a replay.
  bool run(const std::vector<uint64_t>& key, const std::function<void()>& calls);
  void clear();

 private:
  static constexpr size_t most = 64;  // recordings that are kept; with more, all are forgotten
  std::shared_ptr<Device> device_;
  std::map<std::vector<uint64_t>, void*> recordings_;  // NULL: run once, not recorded yet
};

}  // namespace looplm
