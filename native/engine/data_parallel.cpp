#include "data_parallel.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace looplm {

namespace {

// A bucket must be large enough that messages are worth their latency (256 KiB to each rank in float32), and small enough
// that several are under way at once.
constexpr size_t BUCKET = size_t(1) << 20, MESSAGE = size_t(1) << 16;  // elements
constexpr size_t UNDER_WAY = 3;                                        // exchanges at once

size_t rounded_up(size_t count) { return (count + Partition::ALIGNMENT - 1) / Partition::ALIGNMENT * Partition::ALIGNMENT; }

}  // namespace

Partition::Partition(size_t elements, int size)
    : elements_(elements), length_(size == 1 ? rounded_up(elements) : std::max(BUCKET, MESSAGE * size_t(size))), size_(size) {}

size_t Partition::buckets() const { return elements_ == 0 ? 0 : (elements_ + length_ - 1) / length_; }

ElementRange Partition::bucket(size_t index) const { return {index * length_, std::min(elements_, (index + 1) * length_)}; }

ElementRange Partition::share(size_t index, int rank) const {
  const ElementRange all = bucket(index);
  const size_t each = rounded_up((all.count() + size_t(size_) - 1) / size_t(size_));
  const size_t begin = std::min(all.end, all.begin + each * size_t(rank));
  return {begin, std::min(all.end, begin + each)};
}

DataParallel::DataParallel(std::shared_ptr<Communicator> world, std::shared_ptr<Model> model)
    : world_(std::move(world)),
      model_(std::move(model)),
      partition_(model_->trained_elements(), world_->size()),
      left_(partition_.buckets()) {}

DataParallel::~DataParallel() {
  model_->next_final = {};
  forget_exchanges();
}

std::vector<int64_t> DataParallel::share_bytes(size_t bucket, size_t element_size) const {
  std::vector<int64_t> bytes;
  for (int q = 0; q < world_->size(); q++) bytes.push_back(int64_t(partition_.share(bucket, q).count() * element_size));
  return bytes;
}

void DataParallel::exchange_during_next() {
  model_->next_final = [this](size_t begin) { gradients_final_from(begin); };
}

void DataParallel::gradients_final_from(size_t begin) {
  const Uninterrupted whole(*model_->device);  // a half-made exchange would block the other ranks
  final_from_ = std::min(final_from_, begin);
  try {
    advance();
  } catch (...) {
    forget_exchanges();
    throw;
  }
}

// Starts and finishes exchanges as far as possible without waiting.
void DataParallel::advance() {
  if (over_.empty()) return;
  for (;;) {
    while (!under_way_.empty() && finish_exchange(false)) {
    }
    if (left_ == 0 || partition_.bucket(left_ - 1).begin < final_from_ || under_way_.size() == UNDER_WAY) return;
    start_exchange(--left_);
  }
}

void DataParallel::reduce_gradients() {
  model_->next_final = {};  // cleared in case this rank accumulated nothing
  choose_link();
  gradients_final_from(0);
  try {
    while (left_ > 0 || !under_way_.empty()) {
      finish_exchange(true);
      advance();
    }
  } catch (...) {
    forget_exchanges();
    throw;
  }
  forget_exchanges();
}

void DataParallel::keep_only_sums() {
  const auto zero = [&](size_t begin, size_t end) {
    const size_t size = loop_dtype_size(model_->real());
    if (begin < end) model_->device->run(&LoopBackend::zero, "zero", gradient(begin), (end - begin) * size);
  };
  for (size_t b = 0; b < partition_.buckets(); b++) {
    const ElementRange all = partition_.bucket(b), own = partition_.share(b, rank());
    zero(all.begin, own.begin);
    zero(own.end, all.end);
  }
}

// Waits for the exchanges under way, because they still write to their buffers, then drops them.
void DataParallel::forget_exchanges() noexcept {
  for (Exchange& e : under_way_) {
    if (e.done.valid()) e.done.wait();
    else if (link_) link_->forget_oldest();
  }
  under_way_.clear();
  left_ = partition_.buckets();
  final_from_ = SIZE_MAX;
}

// Chooses the link on the first step: it needs collective calls, which all ranks make in the same order there. Exchanges may
// start in a different order on each rank.
void DataParallel::choose_link() {
  if (!over_.empty()) return;
  std::string why_not;
  link_ = DeviceLink::open(model_->device, *world_, why_not);
  over_ = link_ ? link_->description() : world_->description();
  if (!link_ && !model_->device->host_visible()) over_ += ", through the host's memory (" + why_not + ")";
}

void DataParallel::start_exchange(size_t bucket) {
  Model& model = *model_;
  model.gradients();  // allocates zeros if nothing was accumulated
  const Parameter& first = model.trained().front();
  const size_t size = loop_dtype_size(model.real());
  gradients_ = static_cast<char*>(model.gradient_data(first)) - first.offset * size;

  Exchange e;
  if (!spare_.empty()) {
    e = std::move(spare_.back());
    spare_.pop_back();
  }
  e.bucket = bucket;
  const ElementRange all = partition_.bucket(bucket), own = partition_.share(bucket, rank());
  const size_t part = own.count() * size, ranks = size_t(world_->size());
  e.slots.reserve(model.device, part * ranks + 64);
  const bool in_place = link_ || model.device->host_visible();
  if (!in_place) {
    e.out.resize(all.count() * size);
    e.into.resize(part * ranks);
    model.device->run(&LoopBackend::copy_out, "copy_out", e.out.data(), gradient(all.begin), e.out.size());
  }
  std::vector<const void*> send;
  std::vector<void*> receive;
  for (int q = 0; q < world_->size(); q++) {
    const size_t begin = partition_.share(bucket, q).begin;
    send.push_back(in_place ? gradient(begin) : e.out.data() + (begin - all.begin) * size);
    receive.push_back((in_place ? e.slots.as<uint8_t>() : e.into.data()) + part * size_t(q));
  }
  std::vector<int64_t> send_bytes = share_bytes(bucket, size), receive_bytes(ranks, int64_t(part));
  send_bytes[size_t(rank())] = receive_bytes[size_t(rank())] = 0;  // this rank's own part is already in place
  e.began = Clock::now();
  if (link_) link_->exchange(send, send_bytes, receive, receive_bytes);
  else e.done = world_->start_exchange(std::move(send), std::move(send_bytes), std::move(receive), std::move(receive_bytes));
  under_way_.push_back(std::move(e));
}

// Finishes the oldest exchange. Without `wait`, returns false if it has not arrived.
bool DataParallel::finish_exchange(bool wait) {
  std::future<void>& done = under_way_.front().done;
  const auto began = Clock::now();
  const auto since = [](Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); };
  if (link_) {
    if (!link_->arrived(wait)) return false;
    linked_seconds_ += since(std::max(under_way_.front().began, last_arrival_));
    last_arrival_ = Clock::now();
  } else {
    if (!wait && done.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return false;
    done.get();
  }
  if (wait) waiting_ += since(began);
  Exchange e = std::move(under_way_.front());
  under_way_.pop_front();
  if (partition_.share(e.bucket, rank()).count() > 0) add_in_rank_order(e);
  spare_.push_back(std::move(e));
  return true;
}

// gradient = ((part of rank 0 + part of rank 1) + part of rank 2) + …
void DataParallel::add_in_rank_order(Exchange& e) {
  Device& device = *model_->device;
  const ElementRange own = partition_.share(e.bucket, rank());
  const size_t part = own.count() * loop_dtype_size(model_->real());
  if (!link_ && !device.host_visible()) e.slots.upload(e.into.data(), e.into.size());
  void* const gradients = gradient(own.begin);
  const auto of = [&](int q) { return q == rank() ? gradients : e.slots.at(part * size_t(q)); };
  const int64_t count = int64_t(own.count()), stride = 1;
  void* const sum = e.slots.at(0);  // rank 0's slot: free once it has been added
  for (int q = 1; q < world_->size(); q++) {
    const void* before = q == 1 ? of(0) : sum;
    void* out = q + 1 == world_->size() ? gradients : sum;
    device.run(&LoopBackend::binary, "binary", model_->real(), LOOP_ADD, 1, &count, before, &stride, of(q), &stride, out);
  }
}

void DataParallel::gather_parameters() {
  Model& model = *model_;
  const Parameter& first = model.trained().front();
  char* const parameters = static_cast<char*>(model.writable_data(first)) - first.offset * loop_dtype_size(model.dt);
  if (link_) gather_linked(parameters);
  else if (model.device->host_visible()) gather_in_place(parameters);
  else gather_staged(parameters);
}

void DataParallel::gather_in_place(char* parameters) {
  const size_t size = loop_dtype_size(model_->dt);
  std::vector<std::future<void>> gathered;
  for (size_t b = 0; b < partition_.buckets(); b++)
    gathered.push_back(world_->start_all_gather_v(parameters + partition_.bucket(b).begin * size, share_bytes(b, size)));
  for (std::future<void>& one : gathered)
    one.wait();  // wait for all, even if one fails, because they write to the
                 // parameters
  for (std::future<void>& one : gathered) one.get();
}

void DataParallel::gather_linked(char* parameters) {
  const size_t size = loop_dtype_size(model_->dt);
  for (size_t b = 0; b < partition_.buckets(); b++) {
    const std::vector<int64_t> bytes = share_bytes(b, size);
    std::vector<int64_t> sent(bytes.size(), bytes[size_t(rank())]), received = bytes;
    sent[size_t(rank())] = received[size_t(rank())] = 0;
    std::vector<const void*> send(bytes.size(), parameters + partition_.share(b, rank()).begin * size);
    std::vector<void*> receive;
    for (int q = 0; q < world_->size(); q++) receive.push_back(parameters + partition_.share(b, q).begin * size);
    link_->exchange(send, sent, receive, received);
  }
  for (size_t b = 0; b < partition_.buckets(); b++) link_->arrived(true);
}

void DataParallel::gather_staged(char* parameters) {
  Device& device = *model_->device;
  const size_t size = loop_dtype_size(model_->dt);
  std::vector<uint8_t> host;
  for (size_t b = 0; b < partition_.buckets(); b++) {
    const ElementRange all = partition_.bucket(b), own = partition_.share(b, rank());
    host.resize(all.count() * size);
    uint8_t* const at = host.data() + (own.begin - all.begin) * size;
    device.run(&LoopBackend::copy_out, "copy_out", at, parameters + own.begin * size, own.count() * size);
    world_->all_gather_v(host.data(), share_bytes(b, size));
    device.run(&LoopBackend::copy_in, "copy_in", parameters + all.begin * size, host.data(), host.size());
  }
}

}  // namespace looplm
