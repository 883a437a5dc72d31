// Looks at a step that has been taken, over many float32 tensors in one pass over memory: layer_stats.py calls it.
//
// For each row of each tensor: the sums of squares and the largest sizes of weight before the step, gradient and update,
// and Clippy's measure. The update is either taken from Adagrad's accumulator, or from the weights before the step.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {
constexpr int64_t kChunk = 32768;  // numbers, about
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kTiny = 1.0842021724855044e-19f;  // as in kernel.cpp

// A single chunk needs no second thread: none is woken, and none is waited for in a forked process.
inline int team(int64_t chunks, int threads) {
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(chunks, threads)));
}

struct Chunk {
  int64_t tensor, start, stop, first;  // rows of the tensor, and where they stand among all rows
};

std::vector<Chunk> chunks_of(int64_t tensors, const int64_t* rows, const int64_t* widths) {
  std::vector<Chunk> chunks;
  int64_t first = 0;
  for (int64_t t = 0; t < tensors; ++t) {
    const int64_t several = std::max<int64_t>(1, kChunk / std::max<int64_t>(1, widths[t]));
    for (int64_t start = 0; start < rows[t]; start += several) {
      const int64_t stop = std::min(rows[t], start + several);
      chunks.push_back({t, start, stop, first});
      first += stop - start;
    }
  }
  return chunks;
}

struct Rates {
  float back, lr, eps, sign;  // back: lr * sigma under Adagrad, else 1 / (lr * sigma)
};

struct Bound {
  float relative, absolute;
};

// Plain functions of numbers: loops over structs are not vectorised.
// beside: Adagrad's accumulator after the step, or the weight before it.
template <bool kAdagrad>
inline float update_of(float w, float g, float beside, float back, float eps, float sign) {
  return kAdagrad ? sign * g / std::max(std::sqrt(beside) + eps, kTiny) : (beside - w) * back;
}

template <bool kAdagrad>
inline float weight_before(float w, float beside, float update, float back) {
  return kAdagrad ? w + back * update : beside;
}

// Clippy's bound over lr |r|.
inline float ratio_of(float old, float update, float lr, float relative, float absolute) {
  const float step = lr * std::fabs(update);
  return step == 0.0f ? kInf : (relative * std::fabs(old) + absolute) / step;
}

struct Seen {
  float weight = 0, grad = 0, update = 0, weight_top = 0, grad_top = 0, update_top = 0, ratio = kInf;
};

template <bool kAdagrad>
inline Seen look(const float* __restrict w, const float* __restrict g, const float* __restrict beside, int64_t width,
                 Rates rates, Bound bound) {
  const auto [back, lr, eps, sign] = rates;
  const auto [relative, absolute] = bound;
  float ww = 0, gg = 0, rr = 0, wtop = 0, gtop = 0, rtop = 0, low = kInf;
  int nan = 0;
#pragma omp simd reduction(+ : ww, gg, rr) reduction(max : wtop, gtop, rtop) reduction(min : low) reduction(| : nan)
  for (int64_t i = 0; i < width; ++i) {
    const float update = update_of<kAdagrad>(w[i], g[i], beside[i], back, eps, sign);
    const float old = weight_before<kAdagrad>(w[i], beside[i], update, back);
    const float ratio = ratio_of(old, update, lr, relative, absolute);
    ww += old * old;
    gg += g[i] * g[i];
    rr += update * update;
    wtop = std::max(wtop, std::fabs(old));
    gtop = std::max(gtop, std::fabs(g[i]));
    rtop = std::max(rtop, std::fabs(update));
    nan |= ratio != ratio;
    low = ratio < low ? ratio : low;
  }
  return {ww, gg, rr, ww == ww ? wtop : kNan, gg == gg ? gtop : kNan, rr == rr ? rtop : kNan, nan ? kNan : low};
}

template <bool kAdagrad>
inline float least(const float* __restrict w, const float* __restrict g, const float* __restrict beside, int64_t count,
                   Rates rates, Bound bound) {
  const auto [back, lr, eps, sign] = rates;
  const auto [relative, absolute] = bound;
  float low = kInf;
  int nan = 0;
#pragma omp simd reduction(min : low) reduction(| : nan)
  for (int64_t i = 0; i < count; ++i) {
    const float update = update_of<kAdagrad>(w[i], g[i], beside[i], back, eps, sign);
    const float old = weight_before<kAdagrad>(w[i], beside[i], update, back);
    const float ratio = ratio_of(old, update, lr, relative, absolute);
    nan |= ratio != ratio;
    low = ratio < low ? ratio : low;
  }
  return nan ? kNan : low;
}
}  // namespace

extern "C" {

// found: (7, all rows). options: for each tensor lr, eps, sign. backs: for each row.
int surefoot_layer_sums(int64_t tensors, const float* const* weights, const float* const* grads,
                    const float* const* besides, const int64_t* rows, const int64_t* widths, const float* options,
                    const float* backs, float* found, int64_t all_rows, int adagrad, float relative, float absolute,
                    int threads) {
  const std::vector<Chunk> chunks = chunks_of(tensors, rows, widths);
  const int64_t count = static_cast<int64_t>(chunks.size());
  const Bound bound = {relative, absolute};
#pragma omp parallel for num_threads(team(count, threads)) schedule(static)
  for (int64_t c = 0; c < count; ++c) {
    const Chunk& chunk = chunks[c];
    const int64_t t = chunk.tensor, width = widths[t];
    for (int64_t row = chunk.start; row < chunk.stop; ++row) {
      const int64_t at = chunk.first + row - chunk.start, skip = row * width;
      const Rates rates = {backs[at], options[3 * t], options[3 * t + 1], options[3 * t + 2]};
      const auto looks = adagrad ? look<true> : look<false>;
      const Seen seen = looks(weights[t] + skip, grads[t] + skip, besides[t] + skip, width, rates, bound);
      const float values[] = {seen.weight,   seen.grad,       seen.update, seen.weight_top,
                              seen.grad_top, seen.update_top, seen.ratio};
      for (int k = 0; k < 7; ++k) found[k * all_rows + at] = values[k];
    }
  }
  return 0;
}

// ratios[t] becomes Clippy's measure of tensor t: the least bound over lr |r|; inf if nothing moved; NaN if one is.
// options: for each tensor lr, eps, sign. backs: for each tensor.
int surefoot_ratios(int64_t tensors, const float* const* weights, const float* const* grads,
                    const float* const* besides, const int64_t* sizes, const float* options, const float* backs,
                    float* ratios, int adagrad, float relative, float absolute, int threads) {
  const std::vector<int64_t> ones(tensors, 1);
  const std::vector<Chunk> chunks = chunks_of(tensors, sizes, ones.data());
  const int64_t count = static_cast<int64_t>(chunks.size());
  const Bound bound = {relative, absolute};
  std::vector<float> lows(count);
#pragma omp parallel for num_threads(team(count, threads)) schedule(static)
  for (int64_t c = 0; c < count; ++c) {
    const int64_t t = chunks[c].tensor, start = chunks[c].start;
    const Rates rates = {backs[t], options[3 * t], options[3 * t + 1], options[3 * t + 2]};
    const auto leasts = adagrad ? least<true> : least<false>;
    lows[c] = leasts(weights[t] + start, grads[t] + start, besides[t] + start, chunks[c].stop - start, rates, bound);
  }
  std::fill(ratios, ratios + tensors, kInf);
  for (int64_t c = 0; c < count; ++c) {
    float& r = ratios[chunks[c].tensor];
    if (r == r && !(lows[c] >= r)) r = lows[c];  // a NaN, once in, stays
  }
  return 0;
}
}
