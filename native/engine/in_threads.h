// Host work on numbered items that do not need each other, by several threads.
#pragma once
#include <cstddef>
#include <functional>

namespace looplm {

// Calls f(item, thread) for every item in [0, items), 0 <= thread < threads. Threads take items in their order. After an error
// they take no more, and the error of the first item that has one is thrown: the same one for any number of threads.
void in_threads(size_t threads, size_t items, const std::function<void(size_t item, size_t thread)>& f);

}  // namespace looplm
