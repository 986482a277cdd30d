// Runs the engine's tests, or with an argument those whose name contains it.
#include "claims.h"

int main(int count, char** arguments) {
  using namespace looplm::test;
  const std::string filter = count > 1 ? arguments[1] : "";
  bool found = false;
  for (const EngineTest& test : engine_tests()) {
    if (std::string(test.name).find(filter) == std::string::npos) continue;
    found = true;
    try {
      test.run();
    } catch (const std::exception& error) {
      claim(std::string(test.name) + " does not throw", false, error.what());
    }
  }
  if (!found) std::printf("no test has \"%s\" in its name\n", filter.c_str());
  std::printf("%d claims do not hold\n", failures);
  return failures != 0 || !found;
}
