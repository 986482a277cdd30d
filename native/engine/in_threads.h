// Runs independent work items on several host threads.
#pragma once
#include <cstddef>
#include <functional>

namespace looplm {

// Calls f(item, thread) for every item in [0, items), with 0 <= thread < threads. Threads take items in ascending order.
// After an error they take no more items. The error of the lowest failed item is thrown, so it is the same for any number of
// threads.
void in_threads(size_t threads, size_t items, const std::function<void(size_t item, size_t thread)>& f);

}  // namespace looplm
