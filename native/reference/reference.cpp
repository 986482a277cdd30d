#include "reference.h"

#include "context.h"

namespace looplm::reference {
namespace {

LoopBackend make_table() {
  LoopBackend table{};
  table.abi = LOOPLM_BACKEND_ABI;
  table.name = "reference";
  add_memory(table);
  add_gemm(table);
  add_rows(table);
  add_noise(table);
  add_norm(table);
  add_rope(table);
  add_attention(table);
  add_decode(table);
  add_coded_cache(table);
  add_swiglu(table);
  add_exit(table);
  add_head(table);
  add_optimizer(table);
  add_sample(table);
  add_tensor(table);
  return table;
}

}  // namespace
}  // namespace looplm::reference

extern "C" const LoopBackend* looplm_reference_backend(void) {
  static const LoopBackend table = looplm::reference::make_table();
  return &table;
}
