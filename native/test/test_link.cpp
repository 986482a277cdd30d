// The link to devices of other processes, in a world of one rank: messages to itself use the same code.
#include <cstdio>
#include <string>
#include <vector>

#include "harness.h"

namespace looplm::test::link_tests {
namespace {

KERNEL_TEST(link_alone, "link: a world of one sends to itself") {
  const Device& d = t.device;
  const LoopBackend& table = d.table;
  if (!table.link_info) return;
  LoopLinkInfo info;
  d.expect(table.link_info(d.ctx, &info), "link_info");
  if (!info.usable) {
    std::printf("# no link: %s\n", info.library);
    return;
  }
  std::printf("# link: %s, device %s\n", info.library, info.device);
  char key[LOOP_LINK_KEY_BYTES];
  d.expect(table.link_key(d.ctx, key), "link_key");
  void* link = table.link_open(d.ctx, key, 0, 1, 60);
  t.claim(std::string("opens: ") + table.last_error(d.ctx), link != nullptr);
  if (!link) return;
  for (const int64_t bytes : {int64_t(1), int64_t(1000), int64_t(4) << 20}) {
    std::vector<uint8_t> in(size_t(bytes), 0), out(size_t(bytes), 0);
    for (size_t i = 0; i < in.size(); ++i) in[i] = uint8_t(i * 2654435761u >> 13);
    void *from = table.allocate(d.ctx, size_t(bytes)), *to = table.allocate(d.ctx, size_t(bytes));
    // the exchange comes after this copy in the stream
    d.expect(table.copy_in(d.ctx, from, in.data(), size_t(bytes)), "copy_in");
    const void* send = from;
    d.expect(table.link_exchange(d.ctx, link, &send, &bytes, &to, &bytes), "link_exchange");
    d.expect(table.link_exchanged(d.ctx, link, 1), "link_exchanged");
    d.expect(table.copy_out(d.ctx, out.data(), to, size_t(bytes)), "copy_out");
    t.claim(std::to_string(bytes) + " bytes arrive", out == in);
    table.release(d.ctx, from);
    table.release(d.ctx, to);
  }
  d.expect(table.link_exchanged(d.ctx, link, 0), "nothing under way");
  table.link_close(d.ctx, link);
}

}  // namespace
}  // namespace looplm::test::link_tests
