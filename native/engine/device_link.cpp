#include "device_link.h"

#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "error.h"

namespace looplm {

namespace {

// What every rank tells the others about its device and its machine. Both the boot id and the host name are compared:
// containers on one machine have different host names, and different machines may share a host name.
struct Place {
  LoopLinkInfo link{};
  char machine[64] = {}, host[128] = {};
};

Place own_place(Device& device) {
  Place place;
  if (std::FILE* file = std::fopen("/proc/sys/kernel/random/boot_id", "r")) {
    place.machine[std::fread(place.machine, 1, sizeof place.machine - 1, file)] = 0;
    std::fclose(file);
  }
  gethostname(place.host, sizeof place.host - 1);
  if (device.has(&LoopBackend::link_info)) device.run(&LoopBackend::link_info, "link_info", &place.link);
  else std::strcpy(place.link.library, "its device cannot be linked to others");
  return place;
}

std::vector<Place> gather(Communicator& world, const Place& own) {
  Communicator::Bytes bytes(sizeof own);
  std::memcpy(bytes.data(), &own, sizeof own);
  std::vector<Place> all;
  for (const Communicator::Bytes& one : world.gather(bytes)) {
    if (one.size() != sizeof own)
      throw Error("PARALLEL", "step", "the ranks run different versions of looplm: install one version everywhere");
    std::memcpy(&all.emplace_back(), one.data(), sizeof own);
  }
  return all;
}

std::string rank_text(size_t rank) { return "rank " + std::to_string(rank); }

// Why the ranks cannot be linked; empty if they can.
std::string missing(const std::vector<Place>& all) {
  for (size_t q = 0; q < all.size(); q++) {
    if (all[q].link.usable) continue;
    if (all[q].link.chosen && std::string(all[q].link.library) != "LOOPLM_NCCL=off")
      throw Error("PARALLEL", "step",
                  rank_text(q) + ": LOOPLM_NCCL names a library that cannot be used: " + all[q].link.library +
                      ". Name another one, or unset the variable");
    return rank_text(q) + ": " + all[q].link.library;
  }
  return "";
}

void check(const std::vector<Place>& all) {
  for (size_t q = 1; q < all.size(); q++) {
    if (std::string(all[q].link.library) != all[0].link.library)
      throw Error("PARALLEL", "step",
                  "rank 0 has " + std::string(all[0].link.library) + ", " + rank_text(q) + " has " + all[q].link.library +
                      ": install one version everywhere, name its file in LOOPLM_NCCL, or set LOOPLM_NCCL=off to send "
                      "gradients through the host's memory");
    for (size_t p = 0; p < q; p++)
      if (std::string(all[p].machine) == all[q].machine && std::string(all[p].link.device) == all[q].link.device)
        throw Error("PARALLEL", "step",
                    rank_text(p) + " and " + rank_text(q) + " use the same GPU, " + all[q].link.device + " of " + all[q].host +
                        ": start as many processes on a machine as it has GPUs, and give each a different device, or set "
                        "LOOPLM_NCCL=off to send gradients through the host's memory");
  }
}

// If any rank failed, all ranks throw the error of the first one, so that no rank waits for one that has left.
void agree(Communicator& world, const std::string& error) {
  const std::vector<Communicator::Bytes> all = world.gather({error.begin(), error.end()});
  for (size_t q = 0; q < all.size(); q++)
    if (!all[q].empty())
      throw Error("PARALLEL", "step",
                  rank_text(q) + " could not open the link between the GPUs: " + std::string(all[q].begin(), all[q].end()) +
                      ". LOOPLM_NCCL=off sends gradients through the host's memory");
}

Error lost(const Error& e) { return e.code == "INTERNAL" ? Error("PARALLEL", "step", e.what()) : e; }

}  // namespace

std::unique_ptr<DeviceLink> DeviceLink::open(std::shared_ptr<Device> device, Communicator& world, std::string& why_not) {
  const std::vector<Place> all = gather(world, own_place(*device));
  why_not = missing(all);
  if (!why_not.empty()) return nullptr;
  check(all);
  std::string error;
  uint8_t key[LOOP_LINK_KEY_BYTES] = {};
  try {
    if (world.rank() == 0) device->run(&LoopBackend::link_key, "link_key", key);
  } catch (const Error& e) {
    error = e.what();
  }
  agree(world, error);
  world.broadcast(0, key, sizeof key);
  void* link = device->open_link(key, world.rank(), world.size(), world.timeout());
  agree(world, link ? "" : device->last_error());
  return std::unique_ptr<DeviceLink>(new DeviceLink(std::move(device), world, link, all[0].link.library));
}

const int64_t DeviceLink::INTRODUCTION = int64_t(sizeof(int64_t) + sizeof(Place));

void DeviceLink::forget_oldest() noexcept {
  try {
    arrived(true);
  } catch (const Error&) {  // the link is lost: nothing writes to the buffers any more
  }
}

DeviceLink::~DeviceLink() { device_->close_link(link_); }

void DeviceLink::exchange(const std::vector<const void*>& send, const std::vector<int64_t>& send_bytes,
                          const std::vector<void*>& receive, const std::vector<int64_t>& receive_bytes) {
  try {
    device_->run(&LoopBackend::link_exchange, "exchange", link_, send.data(), send_bytes.data(), receive.data(),
                 receive_bytes.data());
  } catch (const Error& e) {
    throw lost(e);
  }
  for (size_t q = 0; q < send_bytes.size(); q++)
    if (int(q) != world_.rank()) world_.count_sent(send_bytes[q]);
}

bool DeviceLink::arrived(bool wait) {
  try {
    return device_->attempt(&LoopBackend::link_exchanged, "exchange", link_, int(wait));
  } catch (const Error& e) {
    throw lost(e);
  }
}

}  // namespace looplm
