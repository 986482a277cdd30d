// Simulates a slow and lossy link between two network namespaces, for kernels without netem. Packets go from a TUN device in
// one namespace to a TUN device in the other, with a delay, and some are lost.
//
//   looplm_slow_link NAMESPACE NAMESPACE MILLISECONDS LOSSES
//
// Creates the device slow0 in both, prints "ready", and counts packets until its standard input ends: "N packets, M lost".
// LOSSES is the probability that a packet is lost. The same packets are lost in every run.
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void stop(const std::string& what) {
  std::perror(what.c_str());
  std::exit(1);
}

int open_device(const std::string& space) {
  const int own = open("/proc/self/ns/net", O_RDONLY), other = open(("/var/run/netns/" + space).c_str(), O_RDONLY);
  if (own < 0 || other < 0 || setns(other, CLONE_NEWNET) != 0) stop("namespace " + space);
  const int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  ifreq request{};
  std::strcpy(request.ifr_name, "slow0");
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  if (device < 0 || ioctl(device, TUNSETIFF, &request) != 0) stop("/dev/net/tun");
  if (setns(own, CLONE_NEWNET) != 0) stop("setns");
  close(own), close(other);
  return device;
}

struct Packet {
  Clock::time_point due;
  std::vector<char> bytes;
};
struct Way {
  int from, to;
  std::deque<Packet> under_way;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fputs("looplm_slow_link NAMESPACE NAMESPACE MILLISECONDS LOSSES\n", stderr);
    return 2;
  }
  const auto delay = std::chrono::microseconds(int64_t(1000 * std::atof(argv[3])));
  const double losses = std::atof(argv[4]);
  const int a = open_device(argv[1]), b = open_device(argv[2]);
  Way ways[] = {{a, b, {}}, {b, a, {}}};
  std::mt19937 draw(1);
  int64_t packets = 0, lost = 0;
  std::puts("ready");
  std::fflush(stdout);
  for (std::vector<char> buffer(1 << 16);;) {
    auto next = Clock::now() + std::chrono::seconds(1);
    for (Way& way : ways) {
      for (; !way.under_way.empty() && way.under_way.front().due <= Clock::now(); way.under_way.pop_front()) {
        const Packet& p = way.under_way.front();
        if (write(way.to, p.bytes.data(), p.bytes.size()) < 0) lost++;  // the device is down
      }
      if (!way.under_way.empty()) next = std::min(next, way.under_way.front().due);
    }
    pollfd waits[] = {{0, POLLIN, 0}, {a, POLLIN, 0}, {b, POLLIN, 0}};
    const auto left = std::max<int64_t>(0, std::chrono::duration_cast<std::chrono::nanoseconds>(next - Clock::now()).count());
    const timespec time{time_t(left / 1'000'000'000), long(left % 1'000'000'000)};
    ppoll(waits, 3, &time, nullptr);
    char ignored[256];
    if ((waits[0].revents & (POLLIN | POLLHUP)) && read(0, ignored, sizeof ignored) <= 0) break;
    for (Way& way : ways)
      for (;;) {
        const ssize_t length = read(way.from, buffer.data(), buffer.size());
        if (length <= 0) break;
        packets++;
        if (double(draw()) / 4294967296.0 < losses) lost++;
        else way.under_way.push_back({Clock::now() + delay, {buffer.begin(), buffer.begin() + length}});
      }
  }
  std::printf("%lld packets, %lld lost\n", static_cast<long long>(packets), static_cast<long long>(lost));
  return 0;
}
