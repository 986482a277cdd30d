#include <cstdlib>
#include <string>
#include <vector>

#include "harness.h"

namespace looplm::test::memory_tests {
namespace {

uint8_t pattern(size_t i) { return uint8_t(i * 2654435761u >> 13); }

// Sizes around a device's staging memory (4 MiB on CUDA, in two halves).
KERNEL_TEST(memory_copies, "memory: copies of every size arrive, many in a row too") {
  const Device& d = t.device;
  constexpr size_t mib = size_t(1) << 20;
  for (size_t bytes : {size_t(1), size_t(257), 4 * mib - 1, 4 * mib, 4 * mib + 1, 9 * mib + 77}) {
    std::vector<uint8_t> in(bytes), out(bytes, 0);
    for (size_t i = 0; i < bytes; ++i) in[i] = pattern(i + bytes);
    void* p = d.table.allocate(d.ctx, bytes);
    d.expect(d.table.copy_in(d.ctx, p, in.data(), bytes), "copy_in");
    const std::vector<uint8_t> sent = in;
    std::fill(in.begin(), in.end(), uint8_t(0));  // the caller may overwrite it when copy_in returns
    d.expect(d.table.copy_out(d.ctx, out.data(), p, bytes), "copy_out");
    t.claim(std::to_string(bytes) + " bytes", out == sent);
    d.table.release(d.ctx, p);
  }
  constexpr size_t pieces = 700, piece = 30011;  // 20 MiB in total, without waiting in between
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

// Sets an environment variable of the emulator for the duration of a test.
class With {
 public:
  With(const char* variable, const char* value) : variable_(variable) { setenv(variable, value, 1); }
  ~With() { unsetenv(variable_); }
  With(const With&) = delete;

 private:
  const char* variable_;
};
bool emulated(const Test& t) { return std::string(t.device.table.name) == "cuda-emulated"; }

KERNEL_TEST(open_refused, "open: what this library cannot use is refused with a reason, and inspect says the same") {
  if (!emulated(t)) return;
  const LoopBackend& table = t.device.table;
  const auto refused = [&](const char* variable, const char* value, const std::string& why) {
    const With with(variable, value);
    void* ctx = table.open(0, 0);
    t.claim(std::string(variable) + "=" + value, ctx == nullptr, table.last_error(nullptr));
    if (ctx) return table.close(ctx);
    t.claim(std::string(variable) + "=" + value + " says why",
            std::string(table.last_error(nullptr)).find(why) != std::string::npos, table.last_error(nullptr));
    t.claim(std::string(variable) + "=" + value + " inspected", table.inspect(0) == nullptr);
  };
  refused("LOOPLM_EMULATOR_CHIP", "7.5", "compute capability 7.5, this library has code for 8.0 and later");
  refused("LOOPLM_EMULATOR_DRIVER", "0", "no NVIDIA driver is installed");
  refused("LOOPLM_EMULATOR_DRIVER", "12080", "the NVIDIA driver is for CUDA 12.8, this library needs one for CUDA 13.0 or later");
  const char* found = table.inspect(0);
  t.claim("a device that can be used", found && std::string(found).find("compute capability 9.0") != std::string::npos,
          found ? found : "nothing");
  t.claim("a device that is not there", table.inspect(1) == nullptr, table.last_error(nullptr));
}

// Attention of one query row and one head: so small that only the limit under test can be exceeded.
struct Small {
  LoopSegment segment{0, 1, 0, 0, 0};
  Buffer segments, in, out, lse, dout, dqkv;
  LoopAttention a{};
  Small(const Device& d, int32_t head_dim)
      : segments(d, &segment, sizeof segment),
        in(act(d, Values(size_t(3 * head_dim), 1.0))),
        out(act(d, Values(size_t(head_dim), 1.0))),
        lse(real(d, Values(1, 1.0))),
        dout(act(d, Values(size_t(head_dim), 1.0))),
        dqkv(act(d, size_t(3 * head_dim))) {
    a.tokens = a.heads = a.kv_heads = a.segment_count = a.group_count = a.max_context = 1;
    a.head_dim = head_dim;
    a.scale = 1;
    a.segments = segments.as<LoopSegment>();
    a.qkv = in, a.out = out, a.lse = lse, a.dout = dout, a.dqkv = dqkv;
  }
};

KERNEL_TEST(scratch_out, "memory: a kernel without memory of its own says that it is out of memory") {
  if (!emulated(t)) return;
  const Device d(&t.device.table, t.device.dt);  // a new device, without scratch memory
  const Small small(d, 8);
  const LoopCacheContext context{{{0, 1}}};
  const Buffer contexts(d, &context, sizeof context);
  const LoopDecodeAttention decode{1, 1, 1, 8, 1, small.in, small.in, small.in, contexts.as<LoopCacheContext>(), small.out};
  const With little("LOOPLM_EMULATOR_MEMORY", "1");
  t.claim("attention_backward", d.table.attention_backward(d.ctx, d.dt, &small.a) == LOOP_OUT_OF_MEMORY,
          d.table.last_error(d.ctx));
  t.claim("decode_attention", d.table.decode_attention(d.ctx, d.dt, &decode) == LOOP_OUT_OF_MEMORY, d.table.last_error(d.ctx));
}

KERNEL_TEST(shared_limit, "attention: the gradient of heads too large for a chip's shared memory is refused by name") {
  if (!emulated(t)) return;
  const Device& d = t.device;
  const With chip("LOOPLM_EMULATOR_CHIP", "8.6");
  for (int32_t head_dim : {8, 128, 256, 264, 512}) {
    const Small small(d, head_dim);
    d.expect(d.table.attention(d.ctx, d.dt, &small.a), "attention");
    const int status = d.table.attention_backward(d.ctx, d.dt, &small.a);
    t.claim("head size " + std::to_string(head_dim), status == (head_dim <= 256 ? 0 : int(LOOP_UNSUPPORTED)),
            "status " + std::to_string(status));
    if (status == 0) continue;
    const std::string message = d.table.last_error(d.ctx);
    t.claim("head size " + std::to_string(head_dim) + " says why",
            message.find("head size " + std::to_string(head_dim)) != std::string::npos &&
                message.find("compute capability 8.6") != std::string::npos,
            message);
  }
}

}  // namespace
}  // namespace looplm::test::memory_tests
