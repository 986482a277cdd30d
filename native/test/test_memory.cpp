#include <string>
#include <vector>

#include "harness.h"

namespace looplm::test {
namespace {

uint8_t pattern(size_t i) { return uint8_t(i * 2654435761u >> 13); }

// Around the sizes of a device's staging memory (4 MiB on CUDA, two halves of it).
KERNEL_TEST(memory_copies, "memory: copies of every size arrive, many in a row too") {
  const Device& d = t.device;
  constexpr size_t mib = size_t(1) << 20;
  for (size_t bytes : {size_t(1), size_t(257), 4 * mib - 1, 4 * mib, 4 * mib + 1, 9 * mib + 77}) {
    std::vector<uint8_t> in(bytes), out(bytes, 0);
    for (size_t i = 0; i < bytes; ++i) in[i] = pattern(i + bytes);
    void* p = d.table.allocate(d.ctx, bytes);
    d.expect(d.table.copy_in(d.ctx, p, in.data(), bytes), "copy_in");
    const std::vector<uint8_t> sent = in;
    std::fill(in.begin(), in.end(), uint8_t(0));  // the caller's again when copy_in returns
    d.expect(d.table.copy_out(d.ctx, out.data(), p, bytes), "copy_out");
    t.claim(std::to_string(bytes) + " bytes", out == sent);
    d.table.release(d.ctx, p);
  }
  constexpr size_t pieces = 700, piece = 30011;  // 20 MiB in all, without a wait in between
  std::vector<uint8_t> in(piece), out(pieces * piece), expected(pieces * piece);
  auto* p = static_cast<char*>(d.table.allocate(d.ctx, pieces * piece));
  for (size_t k = 0; k < pieces; ++k) {
    for (size_t i = 0; i < piece; ++i) expected[k * piece + i] = in[i] = pattern(i * (k + 1));
    d.expect(d.table.copy_in(d.ctx, p + k * piece, in.data(), piece), "copy_in");
  }
  d.expect(d.table.copy_out(d.ctx, out.data(), p, out.size()), "copy_out");
  t.claim("700 in a row", out == expected);
  d.table.release(d.ctx, p);
}

KERNEL_TEST(memory_out, "memory: too much is refused, and what was held before is as it was") {
  const Device& d = t.device;
  const Values held = t.real_normal(1000);
  Buffer before = real(d, held);
  t.claim("an impossible size", d.table.allocate(d.ctx, size_t(1) << 60) == nullptr);
  Buffer after = real(d, held);
  t.same_bits("held before", before.values(), held);
  t.same_bits("taken afterwards", after.values(), held);
}

}  // namespace
}  // namespace looplm::test
