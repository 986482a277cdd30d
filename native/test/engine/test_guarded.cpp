// Functions of a C table, which no exception leaves.
#include "../../guarded.h"

#include <new>

#include "claims.h"

namespace looplm::test {
namespace {

struct Callee {
  bool fails;
  int failures;
};
int counted(void* ctx, const std::exception&) {
  static_cast<Callee*>(ctx)->failures++;
  return 7;
}
int twice(void* ctx, int x) {
  if (static_cast<Callee*>(ctx)->fails) throw std::bad_alloc();
  return 2 * x;
}
const char* named(void* ctx) {
  if (static_cast<Callee*>(ctx)->fails) throw Error("INTERNAL", "test", "no name");
  return "name";
}
void changes(void* ctx, int* value) {
  if (static_cast<Callee*>(ctx)->fails) throw std::bad_alloc();
  *value = 1;
}

ENGINE_TEST(test_guarded, "guarded functions") {
  Callee well{false, 0}, ill{true, 0};
  int value = 0;
  Guarded<changes, counted>::call(&ill, &value);
  claim("an exception of a function without a result is kept", value == 0 && ill.failures == 1);
  claim("an exception becomes a status", Guarded<twice, counted>::call(&ill, 4) == 7 && ill.failures == 2);
  claim("an exception becomes NULL", Guarded<named, counted>::call(&ill) == nullptr && ill.failures == 3);
  Guarded<changes, counted>::call(&well, &value);
  claim("without one, the call is that of the function", Guarded<twice, counted>::call(&well, 4) == 8 &&
                                                             std::string(Guarded<named, counted>::call(&well)) == "name" &&
                                                             value == 1 && well.failures == 0);
}

}  // namespace
}  // namespace looplm::test
