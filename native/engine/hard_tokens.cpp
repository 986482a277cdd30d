#include "hard_tokens.h"

#include <algorithm>
#include <cmath>

#include "pass.h"

namespace looplm {

size_t hard_count(double rho, int64_t predictions) { return size_t(std::ceil(rho * double(predictions))); }

HardTokens::HardTokens(Model& student, const Model& teacher, const Sequences& sequences, PackedBatch& packed,
                       const LoopRptOptions& options, int loops)
    : s_(sequences),
      o_(options),
      loops_(loops),
      largest_entropy_(std::log(double(student.config.vocabulary))),
      begin_(packed.begin),
      index_(packed.end - packed.begin) {
  MicroBatch batch(student, teacher.weights(), sequences, packed, {loops, Stack::Keep::nothing});
  batch.stack.forward_tokens();
  choose(packed, batch.values(batch.rows({loops - 1}, 1), false, true).entropies);
  keep_rows(packed);

  const ExitTable& exits = batch.exits();
  const std::vector<double> logprobs = batch.values(batch.rows(all_loops(loops), 1), true, false).logprobs;
  const size_t R = packed.rows.size();  // row r belongs to tokens_[r]
  for (size_t r = 0; r < R; r++) {
    HardToken& h = tokens_[r];
    double cdf = 0;
    for (size_t t = 0; t < size_t(loops); t++) {
      h.teacher.push_back(logprobs[t * R + r]);
      cdf += exits.pdf[t * R + r];
      if (cdf >= options.tau) h.reference_loop = std::min(h.reference_loop, int(t));
    }
    h.reference_logprob = h.teacher[size_t(h.reference_loop)];
  }
}

// For each sequence, selects the ceil(rho·n) predictions of highest entropy at the last loop. Ties go to the earlier
// prediction.
void HardTokens::choose(const PackedBatch& packed, const std::vector<double>& entropy) {
  const size_t all = packed.rows.size();
  for (size_t r = 0; r < all;) {
    const int32_t sequence = packed.rows[r].sequence;
    std::vector<size_t> order;
    for (; r < all && packed.rows[r].sequence == sequence; r++) order.push_back(r);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return entropy[a] > entropy[b]; });
    order.resize(hard_count(o_.rho, int64_t(order.size())));
    std::sort(order.begin(), order.end());
    auto& index = index_[size_t(sequence) - begin_];
    index.assign(size_t(s_.length(size_t(sequence)) - 1), -1);
    for (size_t row : order) {
      const int32_t position = packed.rows[row].position;
      const double share = std::clamp(entropy[row] / largest_entropy_, 0.0, 1.0);
      index[size_t(position)] = int64_t(tokens_.size());
      tokens_.push_back({sequence, position, loops_ - 1, 0, o_.lambda_base * (1 + o_.lambda_scale * (1 - share)), {}, {}});
    }
  }
}

void HardTokens::keep_rows(PackedBatch& packed) const {
  std::erase_if(packed.rows, [&](const PredictionRow& row) { return index(row) < 0; });
}

}  // namespace looplm
