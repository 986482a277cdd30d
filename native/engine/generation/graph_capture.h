// Series of calls that are made again and again with the same addresses and sizes: recorded by the backend once, then replayed by
// one call. Backends without recordings make the calls.
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

  // key: everything that decides addresses and numbers in `calls`. The first time they are made, which gives them the memory they
  // need; the second time recorded. True when they were replayed.
  bool run(const std::vector<uint64_t>& key, const std::function<void()>& calls);
  void clear();

 private:
  static constexpr size_t most = 64;
  std::shared_ptr<Device> device_;
  std::map<std::vector<uint64_t>, void*> recordings_;  // NULL: made once
};

}  // namespace looplm
