#include "graph_capture.h"

namespace looplm {

bool GraphCapture::run(const std::vector<uint64_t>& key, const std::function<void()>& calls) {
  const auto found = recordings_.find(key);
  if (found == recordings_.end()) {
    calls();
    if (!device_->has(&LoopBackend::record)) return false;
    if (recordings_.size() == most) clear();  // recordings that are still used will be recorded again
    recordings_.emplace(key, nullptr);
    return false;
  }
  void*& recording = found->second;
  if (!recording) {
    if (!device_->attempt(&LoopBackend::record, "record")) {
      calls();
      return false;
    }
    try {
      calls();
    } catch (...) {
      void* incomplete = nullptr;
      if (device_->end_recording(&incomplete)) device_->forget(incomplete);
      throw;
    }
    if (!device_->end_recording(&recording)) throw Error("INTERNAL", "recorded", device_->last_error());
  }
  device_->run(&LoopBackend::replay, "replay", recording);
  return true;
}

void GraphCapture::clear() {
  for (const auto& [key, recording] : recordings_)
    if (recording) device_->forget(recording);
  recordings_.clear();
}

}  // namespace looplm
