// Claims of the engine's tests, one line each. The program fails if one does not hold.
#pragma once
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "../../engine/error.h"

namespace looplm::test {

inline int failures = 0;
inline std::mutex claiming;  // threads that act as ranks make claims too

inline void claim(const std::string& name, bool holds, const std::string& detail = "") {
  std::lock_guard lock(claiming);
  failures += !holds;
  std::printf("%s %s%s%s\n", holds ? "ok" : "not ok", name.c_str(), holds || detail.empty() ? "" : ": ",
              holds ? "" : detail.c_str());
  std::fflush(stdout);
}

// Central differences of fourth order.
inline double derivative(const std::function<double(double)>& of, double step = 1e-5) {
  return (8 * (of(step) - of(-step)) - (of(2 * step) - of(-2 * step))) / (12 * step);
}

// Claims that the action throws an Error with this code, whose message contains all of the parts.
inline void refuses(const std::string& name, const std::string& code, const std::vector<std::string>& parts,
                    const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    bool named = error.code == code;
    for (const std::string& part : parts) named &= std::string(error.what()).find(part) != std::string::npos;
    return claim(name, named, error.code + " " + error.what());
  }
  claim(name, false, "nothing was refused");
}

// A test of the program looplm_engine_tests. Its first argument may select tests by name.
struct EngineTest {
  const char* name;
  void (*run)();
};
inline std::vector<EngineTest>& engine_tests() {
  static std::vector<EngineTest> tests;
  return tests;
}
#define ENGINE_TEST(function, name)                                                                  \
  void function();                                                                                   \
  [[maybe_unused]] const bool function##_added = (engine_tests().push_back({name, function}), true); \
  void function()

}  // namespace looplm::test
