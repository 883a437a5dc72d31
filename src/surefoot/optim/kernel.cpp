// Adagrad with Clippy (or none), and Clippy after any step, over many float32 tensors at once: kernel.py calls it.
//
// Every tensor is cut into chunks; threads share the chunks. The optimistic first pass accumulates, measures Clippy's
// ratio and applies the whole update, so a layer that does not clip is read and written once. If the ratio is below 1,
// a second pass takes back (1 - sigma) of the update. If not optimistic, the first pass only accumulates and measures.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {
constexpr int64_t kChunk = 32768;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kTiny = 1.0842021724855044e-19f;  // root of the smallest normal number: below, squares underflow

// At most one thread for each chunk: a single chunk then wakes no thread, and a forked process waits for none.
inline int team(int64_t chunks, int threads) {
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(chunks, threads)));
}

struct Chunk {
  int64_t tensor, start, stop;
};

std::vector<Chunk> chunks_of(int64_t tensors, const int64_t* sizes) {
  std::vector<Chunk> chunks;
  for (int64_t t = 0; t < tensors; ++t)
    for (int64_t start = 0; start < sizes[t]; start += kChunk)
      chunks.push_back({t, start, std::min(sizes[t], start + kChunk)});
  return chunks;
}

void combine(const std::vector<Chunk>& chunks, const std::vector<float>& least, int64_t tensors, float* ratio) {
  std::fill(ratio, ratio + tensors, kInf);
  for (size_t c = 0; c < chunks.size(); ++c) {
    float& r = ratio[chunks[c].tensor];
    if (r == r && !(least[c] >= r)) r = least[c];  // a NaN, once in, stays
  }
}

inline float direction(float g, float total, float eps) { return g / std::max(std::sqrt(total) + eps, kTiny); }
}  // namespace

extern "C" {

// Returns whether a number of the tensors is NaN or infinite.
int surefoot_nonfinite(int64_t tensors, const uint32_t* const* values, const int64_t* sizes, int threads) {
  const std::vector<Chunk> chunks = chunks_of(tensors, sizes);
  const int64_t count = static_cast<int64_t>(chunks.size());
  int bad = 0;
#pragma omp parallel for num_threads(team(count, threads)) schedule(static) reduction(| : bad)
  for (int64_t c = 0; c < count; ++c) {
    const uint32_t* bits = values[chunks[c].tensor];
    uint32_t top = 0;
#pragma omp simd reduction(max : top)
    for (int64_t i = chunks[c].start; i < chunks[c].stop; ++i) top = std::max(top, bits[i] & 0x7fffffffu);
    bad |= top >= 0x7f800000u;
  }
  return bad;
}

// ratio[t] becomes min_i (relative |w_i| + absolute) / (lr |r_i|) of tensor t; inf without an update; NaN if one is NaN.
int surefoot_clippy_adagrad(int64_t tensors, float* const* weights, const float* const* grads, float* const* sums,
                            const int64_t* sizes, float* ratio, float lr, float relative, float absolute, float eps,
                            float decay, float sign, int optimistic, int threads) {
  const std::vector<Chunk> chunks = chunks_of(tensors, sizes);
  const int64_t count = static_cast<int64_t>(chunks.size());
  std::vector<float> least(count, kInf);

#pragma omp parallel num_threads(team(count, threads))
  {
#pragma omp for schedule(static)
    for (int64_t c = count - 1; c >= 0; --c) {  // backwards: the finite check has left the last gradients in the cache
      float* __restrict w = weights[chunks[c].tensor];
      const float* __restrict g = grads[chunks[c].tensor];
      float* __restrict total = sums[chunks[c].tensor];
      float low = kInf;
      int nan = 0;
#pragma omp simd reduction(min : low) reduction(| : nan)
      for (int64_t i = chunks[c].start; i < chunks[c].stop; ++i) {
        const float gi = sign * g[i];
        const float wi = w[i] * decay;
        total[i] = std::fma(gi, gi, total[i]);  // one rounding, as in torch's addcmul
        const float step = lr * direction(gi, total[i], eps);
        const float size = std::fabs(step);
        const float r = size == 0.0f ? kInf : (relative * std::fabs(wi) + absolute) / size;
        nan |= r != r;
        low = r < low ? r : low;
        if (optimistic) w[i] = wi - step;
      }
      least[c] = nan ? std::numeric_limits<float>::quiet_NaN() : low;
    }
#pragma omp single
    combine(chunks, least, tensors, ratio);
#pragma omp for schedule(static)
    for (int64_t c = 0; c < count; ++c) {
      const float sigma = ratio[chunks[c].tensor] >= 1.0f ? 1.0f : ratio[chunks[c].tensor];
      if (optimistic && sigma == 1.0f) continue;
      float* __restrict w = weights[chunks[c].tensor];
      const float* __restrict g = grads[chunks[c].tensor];
      const float* __restrict total = sums[chunks[c].tensor];
      const float kept = optimistic ? 1.0f : decay;
      const float move = optimistic ? sigma - 1.0f : sigma;
#pragma omp simd
      for (int64_t i = chunks[c].start; i < chunks[c].stop; ++i)
        w[i] = w[i] * kept - lr * (move * direction(sign * g[i], total[i], eps));
    }
  }
  return 0;
}

// Scales changes of weights by Clippy's factor: w <- old + sigma (w - old) where sigma < 1.
// ratio[t] becomes min_i (relative |old_i| + absolute) / |w_i - old_i| of tensor t; inf without a change; NaN if one is.
int surefoot_clip_changes(int64_t tensors, float* const* weights, const float* const* olds, const int64_t* sizes,
                        float* ratio, float relative, float absolute, int threads) {
  const std::vector<Chunk> chunks = chunks_of(tensors, sizes);
  const int64_t count = static_cast<int64_t>(chunks.size());
  std::vector<float> least(count, kInf);

#pragma omp parallel num_threads(team(count, threads))
  {
#pragma omp for schedule(static)
    for (int64_t c = 0; c < count; ++c) {
      const float* __restrict w = weights[chunks[c].tensor];
      const float* __restrict old = olds[chunks[c].tensor];
      float low = kInf;
      int nan = 0;
#pragma omp simd reduction(min : low) reduction(| : nan)
      for (int64_t i = chunks[c].start; i < chunks[c].stop; ++i) {
        const float size = std::fabs(w[i] - old[i]);
        const float r = size == 0.0f ? kInf : (relative * std::fabs(old[i]) + absolute) / size;
        nan |= r != r;
        low = r < low ? r : low;
      }
      least[c] = nan ? std::numeric_limits<float>::quiet_NaN() : low;
    }
#pragma omp single
    combine(chunks, least, tensors, ratio);
#pragma omp for schedule(static)
    for (int64_t c = 0; c < count; ++c) {
      const float sigma = ratio[chunks[c].tensor];
      if (sigma >= 1.0f) continue;
      float* __restrict w = weights[chunks[c].tensor];
      const float* __restrict old = olds[chunks[c].tensor];
#pragma omp simd
      for (int64_t i = chunks[c].start; i < chunks[c].stop; ++i) w[i] = old[i] + sigma * (w[i] - old[i]);
    }
  }
  return 0;
}
}
