#include "in_threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace looplm {

void in_threads(size_t threads, size_t items, const std::function<void(size_t item, size_t thread)>& f) {
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  size_t first = items;
  std::exception_ptr error;
  const auto work = [&](size_t thread) {
    while (!failed) {
      const size_t item = next++;
      if (item >= items) return;
      try {
        f(item, thread);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        failed = true;
        if (item < first) first = item, error = std::current_exception();
      }
    }
  };
  const size_t running = std::min(threads, items);
  std::vector<std::thread> others;
  others.reserve(running);  // from here on only starting a thread may fail, because running threads must be joined
  try {
    for (size_t i = 1; i < running; i++) others.emplace_back(work, i);
  } catch (const std::system_error&) {  // the threads that did start do the work
  }
  work(0);
  for (std::thread& thread : others) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace looplm
