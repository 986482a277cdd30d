// Functions of a C table, from which no exception leaves: a library may have another C++ runtime than its caller.
#pragma once
#include <exception>
#include <type_traits>

namespace looplm {

template <class Function, Function function, auto failed>
struct GuardedFunction;
template <class Result, class... Arguments, Result (*function)(void*, Arguments...), auto failed>
struct GuardedFunction<Result (*)(void*, Arguments...), function, failed> {
  static Result call(void* ctx, Arguments... arguments) {
    try {
      return function(ctx, arguments...);
    } catch (const std::exception& e) {
      [[maybe_unused]] const int status = failed(ctx, e);
      if constexpr (std::is_same_v<Result, int>) return status;
      else return Result();
    }
  }
};

// Guarded<function, failed>::call(ctx, ...) calls function. After an exception, failed(ctx, exception) keeps the reason and
// returns the status. A function without a status then returns NULL or nothing.
template <auto function, auto failed>
using Guarded = GuardedFunction<decltype(function), function, failed>;

}  // namespace looplm
